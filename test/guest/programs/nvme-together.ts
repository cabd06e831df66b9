// Many users of one controller at once: three namespaces, four workers, every queue there is; and a
// worker that ends in the middle of its work.

import { nvmeControl } from '../../../lib/drivers/nvme/index.js';
import { open, type BlockDevice, type Queue } from '../../../lib/index.js';
import { report } from '../inside.js';
import { LoadWorker } from '../nvme-crew.js';
import { bindAll, refusal } from '../nvme-inside.js';
import { VerifiedLoad } from '../nvme-load.js';

const [, , spaces, many, few] = process.argv;
const OPERATIONS = 120;
/** How long pairs of threads that ended may take to be made anew, in a guest. */
const PAIRS_MS = 10_000;

async function after(load: VerifiedLoad, operations: number): Promise<void> {
  const until = load.operations + operations;
  while (load.operations < until) await new Promise((resolve) => setTimeout(resolve, 5));
}

/** Three namespaces of one controller, the same blocks of each at once. */
async function namespaces(): Promise<void> {
  const devices: BlockDevice[] = [];
  for (const nsid of [1, 2, 3]) devices.push(await open(`nvme:${spaces}/${nsid}`));
  const loads = devices.map(
    (device, i) =>
      new VerifiedLoad(device, {
        depth: 8,
        blocks: 8,
        firstLba: 0,
        seed: i,
        operations: OPERATIONS,
      }),
  );
  await Promise.all(loads.map((load) => load.run()));
  for (const load of loads) await load.verify();
  const results = [];
  for (const load of loads) results.push(await load.close());
  report('namespaces', results);
  for (const device of devices) await device.close();
}

async function workers(): Promise<void> {
  const device = await open(`nvme:${many}/1?queues=8&completion=adaptive`);
  const loadAt = (i: number) => ({ depth: 8, blocks: 8, firstLba: i * 64, seed: i });
  const loads = [0, 1, 2, 3, 4].map(loadAt);
  // One of them ends with operations in flight: its queue pair is made anew.
  const [victim, ...crew] = await LoadWorker.crew(device.handle(), loads);
  const own = new VerifiedLoad(device, loadAt(5));
  const running = own.run();
  await after(own, OPERATIONS / 2);
  await victim!.terminate();
  await after(own, OPERATIONS / 2);
  own.stop();
  const results = await Promise.all([...crew.map((worker) => worker.stop()), running]);
  await own.verify();
  await own.close();
  report('workers', results);
  // Every pair but that of `verify` comes free again, that of the worker that ended included.
  const queues = await queuesOf(device, 7);
  report('queues again', queues.length);
  for (const queue of queues) await queue.close();
  report('resets', nvmeControl(device)!.counters.resets);
  await device.close();
}

/** So many queues, once there are: a pair of a thread that ended takes a while. */
async function queuesOf(device: BlockDevice, count: number): Promise<Queue[]> {
  const queues: Queue[] = [];
  for (const end = performance.now() + PAIRS_MS; queues.length < count;) {
    try {
      queues.push(device.queue({ depth: 4 }));
    } catch (error) {
      if ((error as { code?: string }).code !== 'NO_QUEUES' || performance.now() > end) throw error;
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
  }
  return queues;
}

/** Every pair of a controller with `pairs` of them does work; there is no more. */
async function queues(uri: string, pairs: number): Promise<void> {
  const device = await open(uri);
  const loads = Array.from(
    { length: pairs },
    (_, i) =>
      new VerifiedLoad(device, {
        depth: 2,
        blocks: 8,
        firstLba: i * 16,
        seed: i,
        operations: 8,
      }),
  );
  const refused = await refusal(() => device.queue({ depth: 4 }));
  const results = await Promise.all(loads.map((load) => load.run()));
  for (const load of loads) await load.close();
  const sum = (of: 'wrong' | 'touched') => results.reduce((total, each) => total + each[of], 0);
  const done = results.filter((each) => each.reads > 0 && Object.keys(each.codes).length === 1);
  const { description } = device.info;
  const facts = { queues: description['queues'], shadow: description['shadowDoorbells'] };
  report(uri.replace(/^nvme:[^/]*/, ''), {
    ...facts,
    worked: done.length,
    wrong: sum('wrong'),
    touched: sum('touched'),
    refused,
  });
  await device.close();
}

bindAll();
await namespaces();
await workers();
await queues(`nvme:${many}/1?queues=64&entries=64`, 64);
await queues(`nvme:${few}/1?shadow=0`, 2);
