import { describe, expect, it } from 'vitest';
import type { ChatMessage } from '../src/chatTemplate.js';
import { renderChat } from '../src/chatTemplate.js';

const messages: ChatMessage[] = [
  { role: 'system', content: 'Be brief. ' },
  { role: 'user', content: 'One plus one?' },
  { role: 'assistant', content: 'Two' },
  { role: 'user', content: 'Three "more"?' },
];

/** In the manner of LLaMA 3: a header per turn. */
const headers = `{{- bos_token }}
{%- for message in messages %}
    {{- '<' + message['role'] + '>\\n' + message.content | trim + eos_token }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<assistant>\\n' }}
{%- endif %}`;

/** In the manner of LLaMA 2: a check of the roles. */
const alternating = `{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% else %}{% set loop_messages = messages %}{% endif %}
{% for message in loop_messages %}
{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}
{{ '[' + message.content + ']' }}
{% endfor %}`;

describe('renderChat', () => {
  it('renders turns, special tokens and the opening of an answer', () => {
    const options = { bosToken: '^', eosToken: '$' };
    const turns = '^<system>\nBe brief.$<user>\nOne plus one?$<assistant>\nTwo$<user>\nThree "more"?$';
    expect(renderChat(headers, messages, options)).toBe(turns);
    expect(renderChat(headers, messages, { ...options, addGenerationPrompt: true })).toBe(`${turns}<assistant>\n`);
    expect(renderChat(headers, [])).toBe('');
  });

  it('passes further variables', () => {
    expect(renderChat('{{ date_string }}{{ tools is defined }}', [], { variables: { date_string: 'today' } })).toBe(
      'todayfalse',
    );
  });

  it('reports what the template refuses', () => {
    expect(renderChat(alternating, messages)).toBe('[One plus one?]\n[Two]\n[Three "more"?]\n');
    expect(() => renderChat(alternating, messages.slice(2))).toThrow(
      expect.objectContaining({
        name: 'LlamaError',
        code: 'chat-template',
        message:
          'chat template: expected a conversation that the template accepts, got roles assistant, user: Roles must alternate',
      }),
    );
  });

  it('reports syntax errors', () => {
    expect(() => renderChat('{% for m in messages %}', messages)).toThrow(
      expect.objectContaining({
        code: 'chat-template',
        message: expect.stringContaining('expected a Jinja template, got a syntax error') as string,
      }),
    );
  });
});
