// Opens a controller for admin commands only.

import { PenstockError } from '../../errors.js';
import type { NvmeAdmin } from './admin.js';

/** `uri` names a controller: `nvme:0000:01:00.0`, with no namespace. */
export async function openAdmin(uri: string): Promise<NvmeAdmin> {
  throw new PenstockError('UNKNOWN_SCHEME', `${uri}: this version opens no NVMe controllers`, {
    hint: 'It lists the drives that the kernel has.',
    exitCode: 3,
  });
}
