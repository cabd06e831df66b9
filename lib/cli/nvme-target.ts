// Which controller, and which namespace of it, a word of the command line means: a URI, or the
// address of a PCI function alone.

import { PenstockError } from '../errors.js';
import { checkScheme, formatUri, parseUri } from '../uri.js';
import { Exit } from './output.js';

export interface NvmeTarget {
  /** Without a namespace. */
  readonly uri: string;
  /** As in the URI's last part; null where it has none. */
  readonly nsid: number | null;
  /** For headings: the address or socket. */
  readonly name: string;
}

const PCI_ADDRESS = /^(?:([0-9a-f]{4}):)?([0-9a-f]{2}:[0-9a-f]{2}\.[0-7])$/i;

/** Throws BAD_URI and UNKNOWN_SCHEME (usage). */
export function parseTarget(word: string): NvmeTarget {
  const address = PCI_ADDRESS.exec(word);
  if (address !== null) return targetOf(`nvme:${address[1] ?? '0000'}:${address[2]}`);
  if (word.startsWith('/dev/')) {
    throw new PenstockError('DEVICE_BUSY', `${word} belongs to the kernel's driver`, {
      hint:
        'Commands go to controllers that penstock has: give the function to vfio-pci, ' +
        'then name its PCI address (penstock list shows it).',
      exitCode: Exit.NOT_READY,
    });
  }
  return targetOf(word);
}

function targetOf(text: string): NvmeTarget {
  const uri = parseUri(text);
  checkScheme(uri.scheme, ['nvme']);
  const [, path = uri.path, nsid] = /^(.*)\/(\d+)$/.exec(uri.path) ?? [];
  return {
    uri: formatUri({ ...uri, path }),
    nsid: nsid === undefined ? null : Number(nsid),
    name: path,
  };
}
