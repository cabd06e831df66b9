// nvme: a namespace of an NVMe controller, driven from this process (NVM Express Base 2.0).
//
//   nvme:0000:01:00.0/1          namespace 1 of a controller that vfio-pci holds
//   nvme+vfio-user:/run/nvme0/1    namespace 1 of what a vfio-user server offers at /run/nvme0

import { PenstockError } from '../../errors.js';
import { assertHomeAlive, type Backend, type DriverModule } from '../../hpdi/index.js';
import { attachFunction, openVfio, openVfioUser, type PciFunction } from '../../pci/index.js';
import { parseUri } from '../../uri.js';
import type { NvmeAdmin } from './admin.js';
import { AttachedNvmeBackend, NvmeBackend, type NvmeShare } from './backend.js';
import { NvmeControl } from './control.js';
import type { NvmeController } from './controller.js';
import { controllers } from './controllers.js';
import { NVME_KEYS, parseSettings, type NvmeSettings } from './settings.js';

/** Address and namespace of a URI's path; namespace 0: the first there is. */
export function parsePath(path: string, uri: string): { address: string; nsid: number } {
  const match = /^(.*?)(?:\/([0-9]+))?$/.exec(path);
  const address = match?.[1] ?? '';
  const nsid = match?.[2] === undefined ? 0 : Number(match[2]);
  if (address !== '' && nsid <= 0xfffffffe && (match?.[2] === undefined || nsid > 0)) {
    return { address, nsid };
  }
  throw new PenstockError('BAD_URI', `the URI '${uri}' names no namespace of a controller`, {
    hint: 'write nvme:0000:01:00.0/1 or nvme+vfio-user:/run/nvme0/1',
    exitCode: 2,
  });
}

/** Opens a namespace of the controller that `connect` reaches: for transports of one's own. */
export async function openNvme(
  uri: string,
  address: string,
  nsid: number,
  settings: NvmeSettings,
  connect: () => Promise<PciFunction>,
): Promise<Backend> {
  const controller = await controllers.acquire(address, settings, connect);
  try {
    return new NvmeBackend(uri, controller, findNamespace(controller, nsid));
  } catch (error) {
    await controllers.release(controller);
    throw error;
  }
}

function findNamespace(controller: NvmeController, nsid: number): NvmeBackend['namespace'] {
  const there = controller.namespaces.list();
  const found = nsid === 0 ? there[0] : there.find((entry) => entry.nsid === nsid);
  if (found !== undefined && found.problem !== null) throw found.problem;
  if (found !== undefined) return found;
  const names = there.map((entry) => entry.nsid).join(', ');
  const { address } = controller.pci;
  throw new PenstockError('NO_SUCH_NAMESPACE', `${address} has no namespace ${nsid || 'at all'}`, {
    hint: names === '' ? 'create and attach one (`nvme create-ns`)' : `it has ${names}`,
    exitCode: 3,
  });
}

export const driver: DriverModule = {
  scheme: 'nvme',
  keys: NVME_KEYS,
  transports: ['vfio-user'],

  async open(path, query, uri, transport = '') {
    const { address, nsid } = parsePath(path, uri);
    const overUser = transport === 'vfio-user';
    const settings = parseSettings(query, !overUser);
    return openNvme(uri, address, nsid, settings, () =>
      overUser ? openVfioUser(address) : openVfio(address),
    );
  },

  async attach(handle) {
    assertHomeAlive(handle);
    const pci = await attachFunction((handle.shared as NvmeShare).pci);
    try {
      return new AttachedNvmeBackend(handle, pci);
    } catch (error) {
      await pci.close();
      throw error;
    }
  },
};

/**
 * A controller beside its I/O, by the address or URI of it or of one of its namespaces: for admin
 * commands, also where no namespace can be used.
 */
export async function openNvmeAdmin(target: string): Promise<NvmeAdmin> {
  const uri = /^nvme(\+[a-z-]+)?:/.test(target) ? target : `nvme:${target}`;
  const { path, query, transport } = parseUri(uri);
  const { address } = parsePath(path, uri);
  const overUser = transport === 'vfio-user';
  const few = new Map([['queues', '1'], ...query]);
  const settings = parseSettings(few, !overUser);
  const controller = await controllers.acquire(address, settings, () =>
    overUser ? openVfioUser(address) : openVfio(address),
  );
  return new OpenAdmin(controller, () => controllers.release(controller));
}

class OpenAdmin extends NvmeControl implements NvmeAdmin {
  readonly address: string;
  private readonly release: () => Promise<void>;

  constructor(controller: NvmeController, release: () => Promise<void>) {
    super(controller);
    this.address = controller.pci.address;
    this.release = release;
  }

  close(): Promise<void> {
    return this.release();
  }
}
