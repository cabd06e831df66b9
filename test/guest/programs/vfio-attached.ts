// A worker that attaches to a PCI function of its parent: what works there, and what is refused.

import { parentPort, workerData } from 'node:worker_threads';
import { addressSpace } from '../../../lib/memory/index.js';
import { attachFunction } from '../../../lib/pci/index.js';

function refused(attempt: () => unknown): boolean {
  try {
    attempt();
    return false;
  } catch (error) {
    return error instanceof TypeError;
  }
}

const pci = await attachFunction(workerData);
const bar = pci.bar(0);
const words = bar.words(0, 4096)!;
const segment = addressSpace().create(1, { pageBytes: 4096 });
const reached = pci.dma.reach(segment.address);
parentPort!.postMessage({
  vs: words[2],
  byCall: bar.read32(8),
  reached,
  address: segment.address,
  eventfds: pci.enableInterrupts(2).length,
  control: pci.vectorControl(1)?.words.length,
  gone: pci.gone,
  refused: [() => pci.config, () => pci.reset(), () => pci.enable(), () => pci.dma.collect()].map(
    refused,
  ),
});
parentPort!.once('message', async () => {
  const after = { vs: words[2], gone: pci.gone, lost: bar.lost };
  await pci.close();
  parentPort!.postMessage({
    ...after,
    again: await attachFunction(workerData).catch((error: { code: string }) => error.code),
  });
});
