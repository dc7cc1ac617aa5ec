/**
 * The documentation is held to the code: every `ts` block runs and prints what its `// →` comments say, every npm script,
 * link and option of the command that a page names exists.
 */
import { existsSync, mkdtempSync, readFileSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { format } from 'node:util';
import ts from 'typescript';
import { afterAll, afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { verbs } from '../packages/milora/src/cli/command.js';

const root = fileURLToPath(new URL('..', import.meta.url));
/** Inside the repository, so that the blocks find the packages; ignored by git and removed at the end. */
const blocksFolder = mkdtempSync(join(root, 'test/.blocks-'));

/** Every Markdown file of the repository, relative to its root. */
function pagesBelow(folder: string): string[] {
  return readdirSync(join(root, folder), { withFileTypes: true }).flatMap((entry) => {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) {
      return /^(\.|node_modules$|dist$|runs$|coverage$)/.test(entry.name) ? [] : pagesBelow(path);
    }
    return entry.name.endsWith('.md') ? [path] : [];
  });
}

interface Page {
  path: string;
  text: string;
}

const pages: Page[] = pagesBelow('.').map((path) => ({ path, text: readFileSync(join(root, path), 'utf8') }));

/** The contents of the fenced blocks in one language. */
function fenced(text: string, language: string): string[] {
  return [...text.matchAll(new RegExp(`^\`\`\`${language}\\n(.*?)^\`\`\`$`, 'gms'))].map(([, content]) => content!);
}

/** What the `// →` comments of a block announce, a line each. */
const announced = (block: string): string[] => [...block.matchAll(/\/\/ → (.*)$/gm)].map(([, line]) => line!.trim());

const blocks = pages.flatMap(({ path, text }) =>
  fenced(text, 'ts').map((content, i) => {
    const name = `${path.replace(/\W+/g, '-')}-${i + 1}`;
    const file = join(blocksFolder, `${name}.ts`);
    // an import or export makes it a module, which may await at its top
    writeFileSync(file, `${content}\nexport {};\n`);
    return { name: `${path}, block ${i + 1}`, file, content };
  }),
);

afterAll(() => rmSync(blocksFolder, { recursive: true, force: true }));

describe('code in the documentation', () => {
  const home = process.cwd();
  let folder: string;
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'milora-docs-'));
    process.chdir(folder);
  });
  afterEach(() => {
    process.chdir(home);
    rmSync(folder, { recursive: true, force: true });
    vi.restoreAllMocks();
  });

  test('there is some for every package', () => {
    const all = blocks.map(({ content }) => content).join('\n');
    for (const name of ['@milora/tensor', '@milora/autograd', '@milora/llama', 'milora']) {
      expect(all).toContain(`from '${name}'`);
    }
  });

  test.each(blocks)('$name prints what it says', async ({ file, content }) => {
    const printed: string[] = [];
    vi.spyOn(console, 'log').mockImplementation((...values: unknown[]) => {
      printed.push(...format(...values).split('\n'));
    });
    await import(file);
    expect(printed.map((line) => line.trimEnd())).toEqual(announced(content));
  });

  test('it has the right types', () => {
    const { config } = ts.readConfigFile(join(root, 'tsconfig.base.json'), (path) => readFileSync(path, 'utf8')) as {
      config: { compilerOptions: object };
    };
    const { options } = ts.convertCompilerOptionsFromJson(config.compilerOptions, root);
    const files = blocks.map(({ file }) => file);
    const program = ts.createProgram(files, options);
    const problems = blocks.flatMap(({ file, name }) => {
      const source = program.getSourceFile(file)!;
      return [...program.getSyntacticDiagnostics(source), ...program.getSemanticDiagnostics(source)].map(
        ({ messageText }) => `${name}: ${ts.flattenDiagnosticMessageText(messageText, '\n')}`,
      );
    });
    expect(problems).toEqual([]);
  });
});

interface CommandLine {
  verb: string;
  options: string[];
}

/** Every use of the command in code: in a block of shell lines, or between backticks. */
function commandLines(text: string): CommandLine[] {
  const shell = fenced(text, 'sh').flatMap((block) => block.replaceAll('\\\n', ' ').split('\n'));
  const inline = [...text.replace(/^```.*?^```$/gms, '').matchAll(/`([^`\n]+)`/g)].map(([, code]) => code!);
  return [...shell, ...inline].flatMap((line) => {
    const found = /^(?:npm run (?:-s )?milora --|npx milora|milora) ([a-z]+)(.*)$/.exec(line.trim());
    if (!found) return [];
    const options = [...found[2]!.replace(/"[^"]*"/g, '').matchAll(/ --([\w-]+)/g)].map(([, option]) => option!);
    return [{ verb: found[1]!, options }];
  });
}

/** GitHub's anchor of a heading. */
const anchor = (heading: string): string =>
  heading
    .toLowerCase()
    .replace(/[^\p{L}\p{N} _-]/gu, '')
    .replaceAll(' ', '-');

describe.each(pages)('$path', ({ path, text }) => {
  test('names npm scripts that exist', () => {
    const { scripts } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as { scripts: object };
    const named = [...text.matchAll(/npm run (?:-s )?([\w:-]+)/g)].map(([, script]) => script!);
    expect(named.filter((script) => !Object.hasOwn(scripts, script))).toEqual([]);
  });

  test('names verbs and options that the command has', () => {
    const unknown = commandLines(text).filter(({ verb: name, options }) => {
      const verb = verbs.find((candidate) => candidate.name === name);
      return !verb || options.some((option) => !Object.hasOwn(verb.table, option));
    });
    expect(unknown).toEqual([]);
  });

  test('links to what is there', () => {
    const prose = text.replace(/^```.*?^```$/gms, '').replace(/`[^`\n]*`/g, '');
    const missing = [...prose.matchAll(/\]\(([^)\s]+)\)/g)]
      .map(([, link]) => link!)
      .filter((link) => !/^[a-z]+:/.test(link))
      .filter((link) => {
        const [file, hash] = link.split('#') as [string, string | undefined];
        const target = file === '' ? join(root, path) : join(root, dirname(path), file);
        if (!existsSync(target)) return true;
        if (hash === undefined || statSync(target).isDirectory()) return false;
        const headings = [...readFileSync(target, 'utf8').matchAll(/^#+ (.*)$/gm)].map(([, heading]) =>
          anchor(heading!),
        );
        return !headings.includes(hash);
      });
    expect(missing).toEqual([]);
  });

  test('names files that exist', () => {
    // a path in code style that starts at one of our folders
    const named = [...text.matchAll(/`((?:packages|examples|bench|docs|scripts|test)\/[\w./-]+)`/g)].map(
      ([, file]) => file!,
    );
    expect(named.filter((file) => !existsSync(join(root, file)))).toEqual([]);
  });
});
