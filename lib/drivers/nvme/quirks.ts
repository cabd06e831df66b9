// Controllers that are not as the standard says, by PCI vendor and device. What is listed is
// publicly known, mostly from the quirk tables of Linux and SPDK; those that concern only what this
// driver does not do (suspend, fabrics, Open-Channel) are left out.
//
// A quirk says what is wrong, not what to do: the driver decides, at one place per quirk.

import type { PciIdentity } from '../../pci/index.js';
import type { IdentifyController } from './identify-controller.js';

export type Quirk =
  | 'delay-before-start'
  | 'delay-before-ready'
  | 'delay-after-queue'
  | 'slow-shutdown'
  | 'stripe'
  | 'deep-queue'
  | 'medium-priority'
  | 'queue-of-one'
  | 'identify-two-pages'
  | 'no-descriptors'
  | 'bogus-identifiers'
  | 'bogus-subnqn'
  | 'no-write-zeroes'
  | 'deallocated-zeros'
  | 'no-sgl-for-dsm'
  | 'mdts-without-metadata'
  | 'no-deepest-power-state'
  | 'no-temperature-threshold'
  | 'composite-threshold-only'
  | 'broken-msi'
  | 'single-vector'
  | 'shared-tags'
  | 'wide-entries'
  | 'low-command-ids';

interface QuirkEntry {
  readonly quirk: Quirk;
  readonly why: string;
  readonly devices: readonly (readonly [vendor: number, device: number, model: string])[];
}

const INTEL = 0x8086;
const SAMSUNG = 0x144d;
const APPLE = 0x106b;

const P3700: QuirkEntry['devices'][number] = [INTEL, 0x0953, 'Intel P3500, P3600, P3700, 750'];
const P3520: QuirkEntry['devices'][number] = [INTEL, 0x0a53, 'Intel P3520'];
const P4500: QuirkEntry['devices'][number] = [INTEL, 0x0a54, 'Intel P4500, P4600'];
const P4600: QuirkEntry['devices'][number] = [INTEL, 0x0a55, 'Dell Express Flash P4600'];
const P5500: QuirkEntry['devices'][number] = [INTEL, 0x0b60, 'Intel P5500'];
const INTEL_600P: QuirkEntry['devices'][number] = [INTEL, 0xf1a5, 'Intel 600p, P3100'];
const OLD_QEMU: QuirkEntry['devices'][number] = [INTEL, 0x5845, 'QEMU before 6.0'];
const PM1725A: QuirkEntry['devices'][number] = [SAMSUNG, 0xa822, 'Samsung PM1725a'];
const APPLE_T2: QuirkEntry['devices'][number] = [APPLE, 0x2005, 'Apple ANS2'];
const APPLE_S3X: QuirkEntry['devices'][number] = [APPLE, 0x2001, 'Apple S3X'];

export const QUIRKS: readonly QuirkEntry[] = Object.freeze([
  {
    quirk: 'delay-before-start',
    why: 'registers do not answer properly at once after a function level reset',
    devices: [P3700, P3520],
  },
  {
    quirk: 'delay-before-ready',
    why: 'reading CSTS too early after CC.EN changed makes the controller fail',
    devices: [
      [0x1bb1, 0x0100, 'Seagate Nytro'],
      [0x1c58, 0x0003, 'HGST SN100'],
      [0x1c58, 0x0023, 'WDC SN200'],
      [0x1c5f, 0x0540, 'Memblaze PBlaze4'],
      [SAMSUNG, 0xa821, 'Samsung PM1725'],
      PM1725A,
    ],
  },
  {
    quirk: 'delay-after-queue',
    why: 'a new I/O queue does not take commands at once',
    devices: [[0x80ee, 0x4e56, 'VirtualBox']],
  },
  {
    quirk: 'slow-shutdown',
    why: 'CSTS.SHST may not say complete in time: not a failure',
    devices: [[0x15ad, 0x07f0, 'VMware']],
  },
  {
    quirk: 'stripe',
    why: 'a command that crosses a stripe (128 KiB) is much slower; 1 << vs[3] smallest pages',
    devices: [P3700, P3520, P4500, P4600, P5500],
  },
  {
    quirk: 'deep-queue',
    why: 'slow with queues of fewer than 1024 entries',
    devices: [P3700, P3520, P4500, P4600, P5500],
  },
  {
    quirk: 'medium-priority',
    why: 'submission queues need medium priority, or commands starve',
    devices: [INTEL_600P],
  },
  {
    quirk: 'queue-of-one',
    why: 'more than one command in flight ends in resets and loss of data',
    devices: [APPLE_S3X],
  },
  {
    quirk: 'identify-two-pages',
    why: 'Identify with a CNS above 1 fails or gives nonsense',
    devices: [OLD_QEMU, [0x1d1d, 0x1f1f, 'CNEX Labs WestLake'], APPLE_T2],
  },
  {
    quirk: 'no-descriptors',
    why: 'the list of namespace identifiers (CNS 3) hangs or fails though its version has it',
    devices: [
      [0x126f, 0x2263, 'Silicon Motion SM2263'],
      [0x1bb1, 0x0100, 'Seagate Nytro'],
      [0x1b4b, 0x1092, 'Lexar with Marvell 88SS1092'],
    ],
  },
  {
    quirk: 'bogus-identifiers',
    why: 'EUI64 and NGUID are the same on all drives of the model, or change',
    devices: [
      OLD_QEMU,
      P4500,
      [0x1b36, 0x0010, 'QEMU'],
      [0x126f, 0x2262, 'Silicon Motion SM2262'],
      [0x126f, 0x2263, 'Silicon Motion SM2263'],
      [0x1987, 0x5012, 'Phison E12'],
      [0x1987, 0x5016, 'Phison E16'],
      [0x1cc1, 0x33f8, 'ADATA IM2P33F8ABR1'],
      [0x1cc1, 0x5350, 'ADATA XPG Gammix S50'],
      [0x10ec, 0x5762, 'Realtek RTS5762'],
      [0x10ec, 0x5763, 'Realtek RTS5763'],
      [0x10ec, 0x5765, 'Realtek RTS5765'],
      [0x1344, 0x6001, 'Micron Nitro'],
      [0x1c5c, 0x174a, 'SK hynix P31'],
      [SAMSUNG, 0xa80b, 'Samsung PM9B1'],
      [SAMSUNG, 0xa802, 'Samsung SM953'],
      [0x1f40, 0x1202, 'Netac NV3000'],
      [0x1f40, 0x5236, 'Netac NV7000'],
      [0x1e4b, 0x1001, 'Maxio MAP1001'],
      [0x1e4b, 0x1002, 'Maxio MAP1002'],
      [0x1e4b, 0x1202, 'Maxio MAP1202'],
      [0x1e4b, 0x1602, 'Maxio MAP1602'],
      [0x1dbe, 0x5216, 'Innogrit IG5216'],
      [0x1dbe, 0x5236, 'Innogrit IG5236'],
      [0xc0a9, 0x540a, 'Crucial P2'],
      [0x1d97, 0x2263, 'Lexar NM610'],
      [0x1d97, 0x1d97, 'Lexar NM620'],
      [0x1d97, 0x2269, 'Lexar NM760'],
    ],
  },
  {
    quirk: 'bogus-subnqn',
    why: 'the subsystem name is the same on all drives of the model',
    devices: [
      P4500,
      PM1725A,
      [INTEL, 0xf1a6, 'Intel 760p'],
      [0x126f, 0x1001, 'Silicon Motion'],
      [0x1987, 0x5016, 'Phison E16'],
      [0x1b4b, 0x1092, 'Lexar with Marvell 88SS1092'],
      [0x10ec, 0x5762, 'Realtek RTS5762'],
      [0x1cc1, 0x8201, 'ADATA SX8200 Pro'],
      [0x1344, 0x5407, 'Micron'],
      [0x1d97, 0x2269, 'Lexar NM760'],
    ],
  },
  {
    quirk: 'no-write-zeroes',
    why: 'Write Zeroes is slow, fails or leaves data',
    devices: [
      INTEL_600P,
      OLD_QEMU,
      PM1725A,
      [SAMSUNG, 0xa80b, 'Samsung PM9B1'],
      [SAMSUNG, 0xa809, 'Samsung PM991'],
      [0x1987, 0x5019, 'Phison E19'],
      [0x1987, 0x5021, 'Phison E21'],
      [0x1c5c, 0x1504, 'SK hynix PC400'],
      [0x1c5c, 0x1d59, 'SK hynix BC901'],
      [0x15b7, 0x2001, 'SanDisk Skyhawk'],
      [0x1d97, 0x2263, 'Lexar NM610'],
      [0x1cc4, 0x6302, 'UMIS RPJTJ256'],
      [0x1cc4, 0x6303, 'UMIS RPJTJ512'],
      [0x2646, 0x5016, 'Kingston OM3PGP4'],
      [0x2646, 0x5018, 'Kingston OM8SFP4'],
      [0x2646, 0x501a, 'Kingston OM8PGP4'],
      [0x2646, 0x501b, 'Kingston OM8PGP4'],
      [0x2646, 0x501e, 'Kingston OM3PGP4'],
    ],
  },
  {
    quirk: 'deallocated-zeros',
    why: 'deallocated blocks read as zeros though DLFEAT does not say so',
    devices: [P3700, P3520, P4500, P4600],
  },
  {
    quirk: 'no-sgl-for-dsm',
    why: 'Dataset Management takes PRPs only though SGLs are supported',
    devices: [P5500],
  },
  {
    quirk: 'mdts-without-metadata',
    why: 'MDTS does not count metadata that are inline',
    devices: [[INTEL, 0x4140, 'Intel']],
  },
  {
    quirk: 'no-deepest-power-state',
    why: 'does not come back from its deepest power state',
    devices: [
      INTEL_600P,
      [0x2646, 0x2262, 'Kingston KC2000'],
      [0x2646, 0x2263, 'Kingston A2000'],
      [0x1e49, 0x0041, 'Zhitai TiPro7000'],
      [0x025e, 0xf1ac, 'Solidigm P44 Pro'],
      [0x1cc1, 0x8201, 'ADATA SX8200 Pro'],
    ],
  },
  {
    quirk: 'no-temperature-threshold',
    why: 'setting a temperature threshold upsets the controller',
    devices: [INTEL_600P],
  },
  {
    quirk: 'composite-threshold-only',
    why: 'thresholds of single sensors fail',
    devices: [
      [0x2646, 0x5013, 'Kingston KC3000'],
      [0x1fa0, 0x2283, 'Wodposit WPBSNM8'],
    ],
  },
  {
    quirk: 'broken-msi',
    why: 'MSI (not MSI-X) interrupts never come',
    devices: [
      [0x15b7, 0x5008, 'SanDisk SN530'],
      [0x15b7, 0x5009, 'SanDisk SN550'],
    ],
  },
  {
    quirk: 'single-vector',
    why: 'all queues share the first interrupt vector',
    devices: [APPLE_S3X, APPLE_T2],
  },
  {
    quirk: 'shared-tags',
    why: 'a command identifier must be unique over all queues',
    devices: [APPLE_T2],
  },
  {
    quirk: 'wide-entries',
    why: 'submission entries have 128 bytes',
    devices: [APPLE_T2],
  },
  {
    quirk: 'low-command-ids',
    why: 'command identifiers must be below the depth of the queue',
    devices: [APPLE_T2],
  },
] satisfies QuirkEntry[]);

/** Found empirically for the HGST SN100, enough for the others. */
export const DELAY_BEFORE_READY_MS = 2300;
export const DELAY_BEFORE_START_MS = 2000;
export const DELAY_AFTER_QUEUE_MS = 100;

/** What is known of a controller; empty for most. */
export function quirksOf(identity: Pick<PciIdentity, 'vendor' | 'device'>): ReadonlySet<Quirk> {
  const found = QUIRKS.filter(({ devices }) =>
    devices.some(([vendor, device]) => vendor === identity.vendor && device === identity.device),
  );
  return new Set(found.map(({ quirk }) => quirk));
}

/**
 * Bytes of a stripe ('stripe'): the fourth vendor specific byte counts smallest pages by powers of
 * two. 0 where it says nothing or nonsense.
 */
export function stripeBytes(controller: IdentifyController, pageBytesMin: number): number {
  const shift = Number.parseInt(controller.vs.slice(6, 8), 16);
  return shift > 0 && shift <= 12 ? pageBytesMin * 2 ** shift : 0;
}
