// A worker that attaches to a device of its parent and, when it is told to go, has a verified load
// on it until it is told to stop. Messages to the parent: 'attached', 'running' after the first
// operations, then the result.

import { parentPort, workerData } from 'node:worker_threads';
import { attach, type DeviceHandle } from '../../../lib/index.js';
import { VerifiedLoad, type LoadOptions, type LoadResult } from '../nvme-load.js';

export interface LoadWorkerData {
  handle: DeviceHandle;
  load: LoadOptions;
}

const { handle, load: options } = workerData as LoadWorkerData;
const device = await attach(handle);
const load = new VerifiedLoad(device, options);
const told = (): Promise<unknown> => new Promise((resolve) => parentPort!.once('message', resolve));
parentPort!.postMessage('attached');
await told();
void told().then(() => load.stop());
const looking = setInterval(() => {
  if (load.operations < options.depth) return;
  clearInterval(looking);
  parentPort!.postMessage('running');
}, 10);
const result: LoadResult = await load.run();
clearInterval(looking);
await load.close();
await device.close();
parentPort!.postMessage(result);
parentPort!.close();
