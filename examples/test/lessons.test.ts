/** The numbered lessons run and print what their `// →` comments say. */
import { readFileSync, readdirSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { format } from 'node:util';
import { afterEach, describe, expect, test, vi } from 'vitest';

const folder = fileURLToPath(new URL('../lessons/', import.meta.url));
const lessons = readdirSync(folder).filter((name) => name.endsWith('.ts'));

afterEach(() => {
  vi.restoreAllMocks();
});

test('the lessons are numbered from 1', () => {
  expect(lessons.map((name) => Number.parseInt(name))).toEqual(lessons.map((_, i) => i + 1));
});

describe.each(lessons)('%s', (name) => {
  const source = readFileSync(folder + name, 'utf8');

  test('is short', () => {
    expect(source.trimEnd().split('\n').length).toBeLessThanOrEqual(50);
  });

  test('prints what it says', async () => {
    const printed: string[] = [];
    vi.spyOn(console, 'log').mockImplementation((...values: unknown[]) => {
      printed.push(format(...values));
    });
    await import(folder + name);
    expect(printed).toEqual([...source.matchAll(/\/\/ → (.*)$/gm)].map(([, line]) => line!.trim()));
  });
});
