// Memory that a device can reach: what the driver holds of it, and for how long.

import { expect, it } from 'vitest';
import { PenstockError } from '../../../lib/errors.js';
import { Op } from '../../../lib/hpdi/index.js';
import { addressSpace } from '../../../lib/memory/index.js';
import { native } from '../../../lib/native.js';
import { openOnTwin } from '../../support/nvme-open.js';
import { one } from '../../support/requests.js';

it('lets go of the memory of closed queues, though the event loop never turns', async () => {
  const { device, twin } = await openOnTwin({ dma: 'reached' });
  const { dma } = twin.pci;
  for (let i = 0; i < 40; i++) await device.queue({ depth: 4, split: false }).close();
  // Pairs of address and bytes. All of them at once were too much for a machine of 512 MiB.
  expect(native.dmaStale(dma.domain).length / 2).toBeLessThanOrEqual(2);
  await device.close();
  twin.stop();
});

it('says why memory could not be mapped', async () => {
  const { device, twin } = await openOnTwin({ dma: 'reached' });
  const segment = addressSpace().create(2 ** 21);
  const queue = device.queue({ depth: 4 });
  const outcome = async (code: string) => {
    twin.pci.dma.refuse = (address) =>
      address === segment.address ? new PenstockError(code, 'so it is', { hint: 'do this' }) : null;
    const read = { op: Op.READ, blocks: 1, address: segment.address };
    return device.explain((await one(queue, read)).status);
  };
  const message = expect.stringContaining('(so it is: do this)') as string;
  const locked = await outcome('OUT_OF_LOCKED_MEMORY');
  expect(locked).toMatchObject({ code: 'NO_MEMORY', message });
  expect(await outcome('IOVA_OUT_OF_RANGE')).toMatchObject({ code: 'BAD_ADDRESS', message });
  twin.pci.dma.refuse = null;
  await device.close();
  segment.close();
  twin.stop();
});
