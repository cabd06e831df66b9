// Resets of a controller under a verified load of three threads, one at each line that the test
// sends; 'end' ends it. Its argument is the address.

import { nvmeControl } from '../../../lib/drivers/nvme/index.js';
import { open } from '../../../lib/index.js';
import { hear, report, say, until } from '../inside.js';
import { LoadWorker } from '../nvme-crew.js';
import { bindAll } from '../nvme-inside.js';
import { VerifiedLoad } from '../nvme-load.js';

bindAll();
const [, , address = ''] = process.argv;
const device = await open(`nvme:${address}/1?queues=4`);
const loadAt = (i: number) => ({ depth: 8, blocks: 8, firstLba: i * 64, seed: i });
const crew = await LoadWorker.crew(device.handle(), [0, 1].map(loadAt));
const own = new VerifiedLoad(device, loadAt(2));
const running = own.run();
await until(() => own.operations > 8, 'operations');

const control = nvmeControl(device)!;
say('running');
for (let line = await hear(); line !== 'end'; line = await hear()) {
  await control.reset();
  const before = own.operations;
  await until(() => own.operations > before + 8, 'operations after the reset');
  say('reset');
}
own.stop();
const results = [await running, ...(await Promise.all(crew.map((worker) => worker.stop())))];
await own.verify();
await own.close();
report('loads', results);
report('counters', control.counters);
await device.close();
