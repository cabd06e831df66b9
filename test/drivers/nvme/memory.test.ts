// Memory that a device can reach: what the driver holds of it, and for how long.

import { expect, it } from 'vitest';
import { native } from '../../../lib/native.js';
import { openOnTwin } from '../../support/nvme-open.js';

it('lets go of the memory of closed queues, though the event loop never turns', async () => {
  const { device, twin } = await openOnTwin({ dma: 'reached' });
  const { dma } = twin.pci;
  for (let i = 0; i < 40; i++) await device.queue({ depth: 4, split: false }).close();
  // Pairs of address and bytes. All of them at once were too much for a machine of 512 MiB.
  expect(native.dmaStale(dma.domain).length / 2).toBeLessThanOrEqual(2);
  await device.close();
  twin.stop();
});
