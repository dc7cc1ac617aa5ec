/** `milora/node`: data files, adapter folders, and whole runs from files to files. */
export { readDataset } from './node/data.js';
export { loadPeftFolder, readPeftFolder, savePeftFolder, writePeftFolder } from './node/adapterFolder.js';
export type { PeftFolder, SavePeftOptions } from './node/adapterFolder.js';
export { adapterStart, peftOfCheckpoint, readCheckpoint, restartInit, writeCheckpoint } from './node/checkpoint.js';
export type { AdapterStart, Checkpoint } from './node/checkpoint.js';
export { RunFolder } from './node/runFolder.js';
export type { CheckpointName, MetricsEvent, RunConfig, RunKind } from './node/runFolder.js';
export { finetune, finetuneDefaults, presetOptions, resumeFinetune } from './node/finetune.js';
export type { FinetuneOptions, MovedFiles } from './node/finetune.js';
export { pretrain, pretrainDefaults, resumePretrain } from './node/pretrain.js';
export type { PretrainOptions } from './node/pretrain.js';
export type { RunEvent, RunHooks, RunResult, RunSummary, TrainingOptions } from './node/training.js';
export { copyTokenizer, mergeToFolder } from './node/modelFolder.js';
export type { MergeReport } from './node/modelFolder.js';
export type { DataReport } from './node/textData.js';
