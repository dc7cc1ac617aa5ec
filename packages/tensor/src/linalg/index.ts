/** Linear algebra in float64 on the host: decompositions of weights, which must be exact rather than on a device. */
export { cholesky } from './cholesky.js';
export { identity, matrixFromHost, multiplyMatrices, transposeMatrix, zeroMatrix } from './matrix.js';
export type { Matrix } from './matrix.js';
export { qr, qrPivoted } from './qr.js';
export type { PivotedQr, Qr } from './qr.js';
export { openWorkspace, svdMatrix } from './svd.js';
export type { Svd } from './svd.js';
export { leadingSubspace, minorSubspace, singularValues, svd, windowSubspace } from './decompositions.js';
export type { MatrixInput, SingularValues } from './decompositions.js';
export { runNow, runSteps } from './steps.js';
export type { Progress, Steps, StepsOptions } from './steps.js';
export type { Certificate, Method, Subspace, SubspaceCache, SubspaceOptions } from './subspace.js';
export { transposed, viewOf } from './workspace.js';
export type { MultiplyOptions, View, Workspace } from './workspace.js';
