/**
 * Spectra of models and the pictures of docs/svd.md.
 *
 *   node examples/dist/spectra/main.js MODEL [OUT.svg] [RANK]   a table of a model's spectra, and a picture of them
 *   node examples/dist/spectra/main.js --docs                   the pictures in docs/images
 */
import { existsSync, writeFileSync } from 'node:fs';
import { basename } from 'node:path';
import { fileURLToPath } from 'node:url';
import { gramPicture, gramSpectra } from './gram.js';
import { spectraOf, spectraPicture, spectraTable } from './spectra.js';

const pathOf = (path: string): string => fileURLToPath(new URL(`../../../${path}`, import.meta.url));

async function picture(title: string, model: string, out: string | undefined, rank: number): Promise<void> {
  const spectra = await spectraOf(model);
  console.log(`${title}\n\n${spectraTable(spectra, rank)}\n`);
  if (out !== undefined) writeFileSync(out, spectraPicture(title, spectra, rank));
}

async function main([model, out, rank = '8']: string[]): Promise<void> {
  if (model === undefined) throw new Error('expected MODEL [OUT.svg] [RANK], or --docs, got nothing');
  if (model !== '--docs') return picture(`Spectra of ${basename(model)}`, model, out, Number(rank));
  const images = pathOf('docs/images');
  writeFileSync(`${images}/gram.svg`, gramPicture(await gramSpectra()));
  await picture(
    'Spectra of the model of npm start',
    pathOf('examples/tinyworld/model'),
    `${images}/spectra-tinyworld.svg`,
    8,
  );
  const stories = pathOf('../shared/models/stories260K-hf');
  if (existsSync(stories)) await picture('Spectra of stories260K', stories, `${images}/spectra-stories260K.svg`, 8);
  else console.error(`spectra: expected stories260K in ${stories}, got nothing there: its picture is left as it is`);
}

main(process.argv.slice(2)).catch((error: unknown) => {
  console.error(`spectra: ${(error as Error).message}`);
  process.exitCode = 1;
});
