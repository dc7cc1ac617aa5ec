/**
 * Property tests draw the same cases in every run, so that a red run is red again; fast-check prints seed and path of a
 * failure. `FC_SEED=$RANDOM npm test` looks at other cases.
 */
import fc from 'fast-check';

fc.configureGlobal({ seed: Number(process.env['FC_SEED'] ?? 20261124) });
