// A hostile NVMe controller: what it says of itself, in config space, registers, identify and log
// pages and completions, changed at random round what is valid.
//
// A page of noise is refused at its first field; so most changes are small, at the boundaries of
// fields, with the values at which arithmetic goes wrong.

import { Cqe, CqeStatus } from '../../lib/drivers/nvme/commands.js';
import type { NvmeTwin } from '../support/nvme-twin/index.js';
import type { Random } from './harness.js';

/** Byte offset and width. */
type FieldAt = readonly [number, number];

/** Fields of Identify Controller that a driver goes by (NVMe Base 2.0, figure 275). */
const CONTROLLER_FIELDS: readonly FieldAt[] = [
  [0, 2],
  [4, 20],
  [24, 40],
  [64, 8],
  [76, 1],
  [77, 1],
  [78, 2],
  [80, 4],
  [92, 4],
  [96, 4],
  [111, 1],
  [128, 2],
  [130, 2],
  [132, 2],
  [256, 2],
  [258, 1],
  [259, 1],
  [260, 1],
  [261, 1],
  [262, 1],
  [263, 1],
  [266, 2],
  [320, 2],
  [512, 1],
  [513, 1],
  [514, 2],
  [516, 4],
  [520, 2],
  [525, 1],
  [526, 2],
  [528, 2],
  [534, 2],
  [536, 4],
  [540, 4],
  [768, 256],
];

/** Fields of Identify Namespace (NVM Command Set 1.0, figure 97), and its formats. */
const NAMESPACE_FIELDS: readonly FieldAt[] = [
  [0, 8],
  [8, 8],
  [16, 8],
  [24, 1],
  [25, 1],
  [26, 1],
  [27, 1],
  [28, 1],
  [29, 1],
  [30, 1],
  [33, 1],
  [34, 2],
  [36, 2],
  [38, 2],
  [40, 2],
  [42, 2],
  [46, 2],
  [64, 2],
  [66, 2],
  [68, 2],
  [72, 2],
  [74, 2],
  [76, 4],
  [80, 1],
  [99, 1],
  [104, 16],
  [120, 8],
  [128, 2],
  [130, 1],
  [131, 1],
  [132, 4],
];

/** Lists of 32-bit identifiers, descriptors, and whatever else has a shape of its own. */
const LIST_FIELDS: readonly FieldAt[] = [
  [0, 1],
  [1, 1],
  [0, 4],
  [4, 4],
  [8, 4],
  [12, 4],
  [4092, 4],
];

const IDENTIFY_FIELDS: Readonly<Record<number, readonly FieldAt[]>> = {
  0: NAMESPACE_FIELDS,
  1: CONTROLLER_FIELDS,
};

const LOG_FIELDS: readonly FieldAt[] = [
  [0, 1],
  [0, 4],
  [1, 2],
  [3, 1],
  [5, 1],
  [4, 4],
  [8, 2],
  [12, 2],
  [16, 8],
  [64, 8],
];

/** Fields of config space: identity, class, BARs, the list of capabilities and its parts. */
const CONFIG_FIELDS: readonly FieldAt[] = [
  [0x00, 2],
  [0x02, 2],
  [0x06, 2],
  [0x08, 4],
  [0x0e, 1],
  [0x10, 4],
  [0x34, 1],
  [0x40, 1],
  [0x41, 1],
  [0x42, 2],
  [0x44, 4],
  [0x60, 1],
  [0x61, 1],
  [0x100, 4],
];

/** Changes `page` in place: usually a little. */
export function mutate(random: Random, page: Uint8Array, fields: readonly FieldAt[]): void {
  for (let changes = random.between(1, 4); changes > 0; changes--) {
    const choice = random.below(20);
    if (choice < 12) extremeField(random, page, random.pick(fields));
    else if (choice < 16) flipBit(random, page);
    else if (choice < 18) fillPart(random, page);
    else if (choice === 18) page.fill(random.pick([0, 0xff]));
    else for (let i = 0; i < page.length; i++) page[i] = random.u32();
  }
}

/** The values next to which arithmetic goes wrong. */
function extremeField(random: Random, page: Uint8Array, [offset, bytes]: FieldAt): void {
  const end = Math.min(page.length, offset + bytes);
  if (offset >= end) return;
  const field = page.subarray(offset, end);
  switch (random.below(8)) {
    case 0:
      field.fill(0);
      break;
    case 1:
      field.fill(0xff);
      break;
    case 2: // the largest but one
      field.fill(0xff);
      field[0] = 0xfe;
      break;
    case 3: // one
      field.fill(0);
      field[0] = 1;
      break;
    case 4: // the sign bit
      field.fill(0);
      field[field.length - 1] = 0x80;
      break;
    case 5: // the largest positive
      field.fill(0xff);
      field[field.length - 1] = 0x7f;
      break;
    case 6: // one off
      field[0] = field[0]! + random.pick([1, -1]);
      break;
    default:
      for (let i = 0; i < field.length; i++) field[i] = random.u32();
  }
}

function flipBit(random: Random, page: Uint8Array): void {
  const at = random.below(page.length);
  page[at] = page[at]! ^ (1 << random.below(8));
}

function fillPart(random: Random, page: Uint8Array): void {
  const start = random.below(page.length);
  const value = random.pick([0, 0xff, 0x20, 0x80]);
  page.fill(value, start, Math.min(page.length, start + random.between(1, 64)));
}

/** What a case may be hostile in. */
export interface Hostility {
  config: boolean;
  registers: boolean;
  identify: boolean;
  logs: boolean;
  /** Completions of I/O queues, and of the admin queue, may lie. */
  completions: boolean;
  adminCompletions: boolean;
  statuses: boolean;
  /** Commands that never end, or end late. */
  stuck: boolean;
  events: boolean;
  removal: boolean;
  fatal: boolean;
}

const KINDS: readonly (keyof Hostility)[] = [
  'config',
  'registers',
  'identify',
  'logs',
  'completions',
  'adminCompletions',
  'statuses',
  'stuck',
  'events',
  'removal',
  'fatal',
];

/** Mostly one kind, sometimes several, sometimes none: then everything has to work. */
export function chooseHostility(random: Random): Hostility {
  const chosen = new Set<keyof Hostility>();
  for (let count = random.pick([0, 1, 1, 1, 1, 2, 2, 3]); count > 0; count--) {
    chosen.add(random.pick(KINDS));
  }
  return Object.fromEntries(KINDS.map((kind) => [kind, chosen.has(kind)])) as unknown as Hostility;
}

/**
 * What can be held against the driver. A controller that says that a command completed, and then
 * executes it, reads what the driver has put there for another command since: from its first lie
 * about a completion on, it may look anywhere, and only an IOMMU keeps it from that.
 */
export class Judgement {
  private readonly twin: NvmeTwin;
  private until = Infinity;

  constructor(twin: NvmeTwin) {
    this.twin = twin;
  }

  /** The controller lies about completions of I/O commands from now on. */
  lie(): void {
    this.until = Math.min(this.until, this.twin.controller.violations.memory.length);
  }

  /** Accesses to memory that the device has no business in, by the driver's word. */
  get memory(): readonly string[] {
    return this.twin.controller.violations.memory.slice(0, this.until);
  }
}

/** Sets the twin up to be hostile in these ways. */
export function makeHostile(random: Random, twin: NvmeTwin, how: Hostility): Judgement {
  const judgement = new Judgement(twin);
  const { faults } = twin;
  if (how.config) twin.mutateConfig((config) => mutate(random, config, CONFIG_FIELDS));
  if (how.registers) hostileRegisters(random, twin);
  if (how.identify) {
    const share = random.pick([0.05, 0.3, 1]);
    faults.identify = (cns, _, page) => {
      if (random.chance(share)) mutate(random, page, IDENTIFY_FIELDS[cns] ?? LIST_FIELDS);
    };
  }
  if (how.logs) faults.log = (_, page) => mutate(random, page, LOG_FIELDS);
  if (how.identify && random.chance(0.3)) faults.queuesGranted = random.u32();
  if (how.completions || how.adminCompletions) hostileCompletions(random, judgement, twin, how);
  if (how.statuses) hostileStatuses(random, twin);
  if (how.stuck) stuckCommands(random, twin);
  return judgement;
}

/** CAP, VS and the memory buffer's registers; CAP.TO stays short, since a driver waits for it. */
function hostileRegisters(random: Random, twin: NvmeTwin): void {
  twin.mutateRegisters((registers) => {
    const bytes = new Uint8Array(registers.buffer, registers.byteOffset, 0x40);
    const fields: FieldAt[] = [
      [0, 2],
      [2, 1],
      [4, 1],
      [5, 1],
      [6, 1],
      [7, 1],
      [8, 4],
      [0x38, 4],
      [0x3c, 4],
    ];
    for (let changes = random.between(1, 3); changes > 0; changes--) {
      extremeField(random, bytes, random.pick(fields));
    }
    bytes[3] = 1;
  });
  const { faults } = twin;
  const choice = random.below(12);
  if (choice === 0) faults.neverReady = true;
  if (choice === 1) faults.neverIdle = true;
  if (choice === 2) faults.neverShutDown = true;
  if (choice === 3) faults.readySteps = random.between(1, 50);
}

function hostileCompletions(
  random: Random,
  judgement: Judgement,
  twin: NvmeTwin,
  how: Hostility,
): void {
  const share = random.pick([0.01, 0.1, 0.5]);
  let doubles = false;
  twin.faults.completion = (cqe, qid) => {
    if (qid !== 0 && doubles) judgement.lie();
    const may = qid === 0 ? how.adminCompletions : how.completions;
    if (!may || !random.chance(share)) return;
    if (qid !== 0) judgement.lie();
    switch (random.below(8)) {
      case 0: // an identifier that is nobody's, or somebody else's
        setBits(cqe, Cqe.status, 0xffff, random.pick([random.below(8), random.u32() & 0xffff]));
        break;
      case 1:
        setBits(cqe, Cqe.sqHead, 0xffff0000, random.u32() << 16);
        break;
      case 2:
        setBits(cqe, Cqe.sqHead, 0xffff, random.u32() & 0xffff);
        break;
      case 3:
        cqe[Cqe.status] = cqe[Cqe.status]! ^ CqeStatus.PHASE;
        break;
      case 4:
        setBits(cqe, Cqe.status, 0xfffe0000, random.u32() & 0xfffe0000);
        break;
      case 5:
        cqe[Cqe.dw0] = random.u32();
        cqe[Cqe.dw1] = random.u32();
        break;
      case 6:
        for (let word = 0; word < Cqe.words; word++) cqe[word] = random.u32();
        break;
      default:
        cqe.fill(random.pick([0, 0xffffffff]));
    }
  };
  doubles = random.chance(0.3);
  if (doubles) twin.faults.twice({ count: random.between(1, 4), skip: random.below(30) });
}

function setBits(cqe: Uint32Array, word: number, mask: number, value: number): void {
  cqe[word] = (cqe[word]! & ~mask) | (value & mask);
}

function hostileStatuses(random: Random, twin: NvmeTwin): void {
  for (let rules = random.between(1, 5); rules > 0; rules--) {
    const status = {
      sct: random.pick([0, 0, 1, 2, 3, 7]),
      sc: random.pick([0, 1, 2, 4, 5, 6, 0x0b, 0x80, 0x82, 0x83, random.below(256)]),
      dnr: random.chance(0.5),
      more: random.chance(0.2),
      crd: random.below(4),
    };
    const match = { skip: random.below(20), count: random.pick([1, 1, 3, 20]) };
    twin.faults.status(match, status, { execute: random.chance(0.5) });
  }
}

function stuckCommands(random: Random, twin: NvmeTwin): void {
  for (let rules = random.between(1, 3); rules > 0; rules--) {
    const match = { skip: random.below(40), count: random.between(1, 3) };
    if (random.chance(0.5)) twin.faults.drop(match);
    else twin.faults.delay(match, random.pick([1, 5, 100]));
  }
  twin.faults.abortFails = random.chance(0.3);
}

/** Something that happens in the middle of the work. */
export function disturb(
  random: Random,
  judgement: Judgement,
  twin: NvmeTwin,
  how: Hostility,
): void {
  if (how.events && random.chance(0.5)) {
    const nsid = random.between(1, 6);
    const there = twin.controller.namespaces.has(nsid);
    if (!there) twin.addNamespace({ nsid, blocks: random.pick([1, 1000, 2 ** 40]) });
    else if (random.chance(0.5)) twin.resize(nsid, random.pick([0, 1, 64, 2 ** 33, 2 ** 53]));
    else twin.removeNamespace(nsid);
  }
  if (how.events) twin.event(random.below(8), random.below(256), random.below(256));
  if (how.completions && random.chance(0.3)) {
    judgement.lie();
    postStray(random, twin);
  }
  if (how.removal && random.chance(0.3)) twin.remove(random.pick([0xffffffff, 0xffffffff, 0]));
  if (how.fatal && random.chance(0.3)) twin.fail();
}

function postStray(random: Random, twin: NvmeTwin): void {
  const qids = [...twin.controller.queues.cqs.keys()];
  if (qids.length === 0) return;
  const cid = random.pick([random.below(16), random.u32() & 0xffff]);
  const status = random.pick([0, random.u32() & 0x7fff]);
  twin.post({ qid: random.pick(qids), cid, status });
}
