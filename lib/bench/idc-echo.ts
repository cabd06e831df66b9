// The worker at the other end of postMessage: adds up what it gets, and answers with the sum.

import { parentPort } from 'node:worker_threads';
import { sumOf } from './idc-records.js';

parentPort?.on('message', (payload: Uint32Array) => {
  parentPort?.postMessage(sumOf(payload, 0, payload.length));
});
