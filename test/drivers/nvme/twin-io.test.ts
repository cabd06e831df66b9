// The driver against the twin: I/O of every shape, with the twin's checks of each address.

import { afterEach, describe, expect, it } from 'vitest';
import { openNvme } from '../../../lib/drivers/nvme/index.js';
import { parseSettings } from '../../../lib/drivers/nvme/settings.js';
import { BlockDevice } from '../../../lib/hpdi/index.js';
import { NvmeTwin, type NvmeTwinOptions } from '../../support/nvme-twin/index.js';

const opened: { device: BlockDevice; twin: NvmeTwin }[] = [];

async function openTwin(
  options: NvmeTwinOptions = {},
  keys: Record<string, string> = {},
): Promise<{ device: BlockDevice; twin: NvmeTwin }> {
  const twin = new NvmeTwin({ address: `twin-${opened.length}`, ...options });
  twin.start();
  const settings = parseSettings(new Map(Object.entries(keys)), true);
  const backend = await openNvme('nvme:twin', twin.pci.address, 0, settings, async () => twin.pci);
  const pair = { device: new BlockDevice(backend), twin };
  opened.push(pair);
  return pair;
}

afterEach(async () => {
  for (const { device, twin } of opened.splice(0)) {
    await device.close();
    expect(twin.check()).toEqual([]);
    twin.stop();
  }
});

describe('an NVMe namespace on a twin', () => {
  it('reads what was written', async () => {
    const { device } = await openTwin();
    const buffer = device.memory.alloc(8192);
    buffer.u8.fill(7);
    await device.write(3, buffer);
    buffer.u8.fill(0);
    await device.read(3, buffer);
    expect(buffer.u8.every((byte) => byte === 7)).toBe(true);
    await device.flush();
    buffer.free();
  });
});
