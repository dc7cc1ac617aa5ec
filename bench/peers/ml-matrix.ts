/** ml-matrix (https://github.com/mljs/matrix): bidiagonalisation and QR in float64, on one thread. */
import { require, serveSvd } from './peer.js';

interface Matrix {
  transpose(): Matrix;
  to2DArray(): number[][];
}

interface MlMatrix {
  Matrix: new (rows: number[][]) => Matrix;
  SingularValueDecomposition: new (
    a: Matrix,
    options: { autoTranspose: boolean },
  ) => {
    leftSingularVectors: Matrix;
    rightSingularVectors: Matrix;
    diagonal: number[];
  };
}

const { Matrix, SingularValueDecomposition } = require('ml-matrix') as MlMatrix;

await serveSvd((rows) => {
  const a = new Matrix(rows);
  return () => {
    const { leftSingularVectors, rightSingularVectors, diagonal } = new SingularValueDecomposition(a, {
      autoTranspose: true,
    });
    const [u, v] = [leftSingularVectors, rightSingularVectors].map((m) => m.transpose().to2DArray());
    return { u: u!, s: diagonal, v: v! };
  };
});
