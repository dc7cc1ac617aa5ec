/**
 * A training case in files, so that other libraries can run the very same: `weights.bin` (float32, in the order of the
 * index), `ids.bin` (int32), and `index.json` with names and shapes, written last together with our losses. Names are those
 * of PEFT (`….base_layer.weight`, `….lora_A.default.weight`). A padded batch of real data comes as `batch.json` too.
 */
import { closeSync, mkdirSync, openSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { LlamaForCausalLM } from '@milora/llama';
import { AdapterLinear } from 'milora';
import type { Labelled } from './finetuning.js';

/** Writes weights and ids as they are now; call what it returns with the index's other fields once they are known. */
export async function exportCase(
  folder: string,
  model: LlamaForCausalLM,
  batch: Labelled,
): Promise<(rest: Record<string, unknown>) => void> {
  mkdirSync(folder, { recursive: true });
  const adapted = new Set<string>();
  for (const [path, module] of model.namedModules()) if (module instanceof AdapterLinear) adapted.add(path);
  const tensors: [string, readonly number[]][] = [];
  const file = openSync(join(folder, 'weights.bin'), 'w');
  for (const [name, { value }] of model.namedParameters()) {
    tensors.push([peftName(name, adapted), value.shape]);
    const data = await value.data();
    writeFileSync(file, data);
  }
  closeSync(file);
  writeFileSync(join(folder, 'ids.bin'), Int32Array.from(batch.inputIds));
  if (batch.ranges) writeFileSync(join(folder, 'batch.json'), JSON.stringify(maskedBatch(batch)));
  return (rest) => writeFileSync(join(folder, 'index.json'), JSON.stringify({ tensors, ...rest }));
}

/** A padded batch as PyTorch takes it: rows of ids and labels, and 0 for padding in the mask. */
function maskedBatch({ batch, length, inputIds, labels, ranges }: Labelled): Record<string, unknown> {
  const attentionMask = Array.from(inputIds, (_, i) => (ranges![2 * i + 1]! > ranges![2 * i]! ? 1 : 0));
  return { batch, length, inputIds: Array.from(inputIds), labels: Array.from(labels), attentionMask };
}

function peftName(name: string, adapted: ReadonlySet<string>): string {
  const [, path, last] = /^(.*)\.([^.]+)$/.exec(name)!;
  if (!adapted.has(path!)) return name;
  if (last === 'lora_a') return `${path}.lora_A.default.weight`;
  if (last === 'lora_b') return `${path}.lora_B.default.weight`;
  return `${path}.base_layer.${last}`;
}
