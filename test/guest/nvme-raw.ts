// An NVMe controller driven by hand, without any of the driver's checks: addresses go to the device
// as they are given. One admin queue, one I/O queue pair, one command at a time, polled.

import { addressSpace, type Segment } from '../../lib/memory/index.js';
import { native } from '../../lib/native.js';
import { openVfio, type Bar, type PciFunction } from '../../lib/pci/index.js';

const ENTRIES = 16;
const PAGE = 4096;
const LIMIT_US = 20_000_000;
/** Registers (NVM Express Base 2.0, section 3.1.3), and values of CC and CSTS. */
const CC = 0x14;
const CSTS = 0x1c;
const AQA = 0x24;
const ASQ = 0x28;
const ACQ = 0x30;
const DOORBELLS = 0x1000;
const ENABLE = 0x00460001;
const READY = 1;
/** Opcodes of admin commands. */
const CREATE_SQ = 0x01;
const CREATE_CQ = 0x05;

class RawQueue {
  private tail = 0;
  private head = 0;
  private phase = 1;

  constructor(
    private readonly bar: Bar,
    private readonly id: number,
    private readonly sq: Uint32Array,
    private readonly cq: Uint32Array,
  ) {}

  /** Runs one command (16 words) to its end; its status field. */
  run(words: Uint32Array): number {
    this.sq.set(words, this.tail * 16);
    this.tail = (this.tail + 1) % ENTRIES;
    this.bar.write32(DOORBELLS + this.id * 8, this.tail);
    const word = this.head * 4 + 3;
    waitFor(() => ((this.cq[word]! >>> 16) & 1) === this.phase, 'a completion');
    const status = this.cq[word]! >>> 17;
    this.head = (this.head + 1) % ENTRIES;
    if (this.head === 0) this.phase ^= 1;
    this.bar.write32(DOORBELLS + this.id * 8 + 4, this.head);
    return status;
  }
}

function waitFor(done: () => boolean, what: string): void {
  for (let waited = 0; !done(); waited += 100) {
    if (waited > LIMIT_US) throw new Error(`${what} did not come`);
    native.pause(100);
  }
}

export class RawController {
  /** A page that the device reaches. */
  readonly page: { address: number; u8: Uint8Array };
  private readonly pci: PciFunction;
  private readonly segment: Segment;
  private readonly admin: RawQueue;
  private readonly io: RawQueue;

  private constructor(pci: PciFunction) {
    this.pci = pci;
    this.segment = addressSpace().create(2 ** 21, { pageBytes: PAGE });
    const { address, u8, u32 } = this.segment;
    pci.dma.reach(address);
    pci.enable();
    const ring = (page: number) => u32.subarray((page * PAGE) / 4, ((page + 1) * PAGE) / 4);
    const bar = pci.bar(0);
    bar.write32(CC, 0);
    waitFor(() => (bar.read32(CSTS) & READY) === 0, 'the end of the controller');
    bar.write32(AQA, (ENTRIES - 1) | ((ENTRIES - 1) << 16));
    write64(bar, ASQ, address);
    write64(bar, ACQ, address + PAGE);
    bar.write32(CC, ENABLE);
    waitFor(() => (bar.read32(CSTS) & READY) !== 0, 'the controller');
    this.admin = new RawQueue(bar, 0, ring(0), ring(1));
    this.io = new RawQueue(bar, 1, ring(2), ring(3));
    const size = (ENTRIES - 1) << 16;
    this.create(CREATE_CQ, address + 3 * PAGE, size | 1, 1);
    this.create(CREATE_SQ, address + 2 * PAGE, size | 1, 1 | (1 << 16));
    this.page = { address: address + 4 * PAGE, u8: u8.subarray(4 * PAGE, 5 * PAGE) };
  }

  static async open(address: string): Promise<RawController> {
    return new RawController(await openVfio(address));
  }

  /** Reads a page at a 512-byte block of namespace 1 into any address. */
  read(lba: number, to: number): number {
    return this.transfer(0x02, lba, to);
  }

  write(lba: number, from: number): number {
    return this.transfer(0x01, lba, from);
  }

  /** Identify Controller into any address. */
  identify(to: number): number {
    const words = command(0x06, 0, to);
    words[10] = 1;
    return this.admin.run(words);
  }

  async close(): Promise<void> {
    this.pci.bar(0).write32(CC, 0);
    await this.pci.close();
    this.segment.close();
  }

  private create(opcode: number, address: number, cdw10: number, cdw11: number): void {
    const words = command(opcode, 0, address);
    words[10] = cdw10;
    words[11] = cdw11;
    const status = this.admin.run(words);
    if (status !== 0) throw new Error(`queue not made: status 0x${status.toString(16)}`);
  }

  private transfer(opcode: number, lba: number, address: number): number {
    const words = command(opcode, 1, address);
    words[10] = lba;
    words[12] = PAGE / 512 - 1;
    return this.io.run(words);
  }
}

function command(opcode: number, nsid: number, prp1: number): Uint32Array {
  const words = new Uint32Array(16);
  words[0] = opcode;
  words[1] = nsid;
  words[6] = prp1 % 2 ** 32;
  words[7] = Math.floor(prp1 / 2 ** 32);
  return words;
}

function write64(bar: Bar, offset: number, value: number): void {
  bar.write32(offset, value % 2 ** 32);
  bar.write32(offset + 4, Math.floor(value / 2 ** 32));
}
