// What the command line needs of an open controller: the pages as the device gave them. An open
// controller implements it; tests do with files.

import type { PciIdentity } from '../../pci/index.js';

export interface LogPageRequest {
  readonly lid: number;
  /** 0xffffffff: the controller, all its namespaces. */
  readonly nsid: number;
  /** A multiple of 4, at most 8192: longer pages in parts. */
  readonly bytes: number;
  /** First byte of the part (default 0). */
  readonly offset?: number;
  /** Leave the asynchronous event raised (RAE). */
  readonly retain?: boolean;
}

/** Pages come as they are; a command that fails rejects with a PenstockError that decodes it. */
export interface NvmeAdmin {
  readonly identity: PciIdentity;
  /** `0000:01:00.0`, or the path of a vfio-user socket. */
  readonly address: string;
  /** The first 4096 bytes of BAR 0, read as 32-bit registers. */
  registers(): Uint8Array;
  identifyController(): Promise<Uint8Array>;
  identifyNamespace(nsid: number): Promise<Uint8Array>;
  /** Rising. */
  activeNamespaces(): Promise<readonly number[]>;
  getLogPage(request: LogPageRequest): Promise<Uint8Array>;
  reset(): Promise<void>;
  close(): Promise<void>;
}
