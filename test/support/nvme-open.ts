// Opens the NVMe driver on a twin, as tests of the driver do.

import { openNvme } from '../../lib/drivers/nvme/index.js';
import { parseSettings } from '../../lib/drivers/nvme/settings.js';
import { BlockDevice } from '../../lib/hpdi/index.js';
import { NvmeTwin, type NvmeTwinOptions } from './nvme-twin/index.js';

let twins = 0;

export interface TwinDevice {
  readonly device: BlockDevice;
  readonly twin: NvmeTwin;
}

/** A namespace (0: the first) of a new twin that is served from the event loop; keys as in URIs. */
export async function openOnTwin(
  options: NvmeTwinOptions = {},
  keys: Readonly<Record<string, string>> = {},
  nsid = 0,
): Promise<TwinDevice> {
  const twin = new NvmeTwin({ address: `twin-${twins++}`, ...options });
  twin.start();
  try {
    return { device: await openAgain(twin, keys, nsid), twin };
  } catch (error) {
    twin.stop();
    throw error;
  }
}

/** Another namespace of the same twin, or the same once more. */
export async function openAgain(
  twin: NvmeTwin,
  keys: Readonly<Record<string, string>> = {},
  nsid = 0,
): Promise<BlockDevice> {
  const settings = parseSettings(new Map(Object.entries(keys)), true);
  const { address } = twin.pci;
  const uri = `nvme:${address}/${nsid}`;
  const backend = await openNvme(uri, address, nsid, settings, async () => twin.pci);
  const openQueue = backend.openQueue.bind(backend);
  backend.openQueue = (options) => {
    const queue = openQueue(options);
    const park = queue.park!.bind(queue);
    // A thread that sleeps on a real device does not keep it from working; here it would.
    queue.park = (timeoutUs) => {
      twin.step();
      park(timeoutUs);
    };
    return queue;
  };
  return new BlockDevice(backend);
}
