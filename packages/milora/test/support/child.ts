/** The command in a process of its own, from the sources. */
import { spawn } from 'node:child_process';
import { fileURLToPath } from 'node:url';

const path = (relative: string): string => fileURLToPath(new URL(relative, import.meta.url));

export interface ChildOutcome {
  code: number | null;
  signal: NodeJS.Signals | null;
  out: string;
  err: string;
}

/** Runs the command; `onOutput` sees what stdout has so far and may send a signal. */
export function spawnMilora(
  args: readonly string[],
  onOutput?: (out: string, kill: (signal: NodeJS.Signals) => void) => void,
): Promise<ChildOutcome> {
  return spawnSource('../../src/cli/main.ts', args, onOutput);
}

/** Runs a source file, named relative to this one. */
export function spawnSource(
  file: string,
  args: readonly string[],
  onOutput: (out: string, kill: (signal: NodeJS.Signals) => void) => void = () => undefined,
): Promise<ChildOutcome> {
  const loader = ['--conditions=milora-source', '--import', path('./typescriptLoader.mjs'), '--no-warnings'];
  const child = spawn(process.execPath, [...loader, path(file), ...args], {
    env: { ...process.env, MILORA_LOADER: '', NODE_OPTIONS: '' },
  });
  let [out, err] = ['', ''];
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    out += text;
    onOutput(out, (signal) => child.kill(signal));
  });
  child.stderr.setEncoding('utf8').on('data', (text: string) => (err += text));
  return new Promise((resolve, reject) => {
    child.on('error', reject).on('close', (code, signal) => resolve({ code, signal, out, err }));
  });
}
