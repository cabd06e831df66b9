// The twin's life: registers, enable and reset, identify, queues, events, namespaces.

import { afterEach, describe, expect, it } from 'vitest';
import { native } from '../../lib/native.js';
import { Code, type NvmeTwinOptions, statusOf } from '../support/nvme-twin/index.js';
import { Mini } from './mini.js';

const DNR = Code.DNR;
let mini: Mini | null = null;

function ready(options: NvmeTwinOptions = {}): Mini {
  return (mini = Mini.ready(options));
}

function withQueue(options: NvmeTwinOptions = {}): Mini {
  return (mini = Mini.withQueue(options));
}

afterEach(() => {
  mini?.close();
  mini = null;
});

describe('registers', () => {
  it('say what the options ask for', () => {
    mini = new Mini({ entriesMax: 64, timeoutUnits: 7, doorbellStride: 2, version: 0x10400 });
    mini.twin.pci.enable();
    expect(mini.reg(0)).toBe(63 | (1 << 16) | (7 << 24));
    expect(mini.reg(4)).toBe(2 | (1 << 5));
    expect(mini.reg(8)).toBe(0x10400);
    expect(mini.reg(0x1c)).toBe(0);
  });

  it('cannot be reached before memory space is enabled', () => {
    mini = new Mini();
    expect(mini.reg(0)).toBe(0xffffffff);
    expect(mini.twin.violations).toHaveLength(1);
  });

  it('are mapped as far as the options say', () => {
    for (const mapped of ['none', 'doorbells', 'all'] as const) {
      const each = new Mini({ mapped });
      expect(each.bar.words(0x1000, 64) === null).toBe(mapped === 'none');
      expect(each.bar.words(0, 0x1000) === null).toBe(mapped !== 'all');
      each.close();
    }
  });

  it('complain of what a host may not write', () => {
    const { twin } = ready();
    mini!.setReg(0, 1);
    mini!.setReg(0x24, 0);
    mini!.setReg(0x14, 0x460001 | (1 << 11));
    expect(twin.violations).toEqual([
      'register 0x0 is written, but read-only or reserved',
      'register 0x24 is written while CC.EN is 1',
      'CC.CSS, MPS or AMS changes while CC.EN is 1',
    ]);
    expect(mini!.reg(0) & 0xffff).toBe(1023);
  });

  it('take effect at the next step where they are mapped', () => {
    mini = new Mini({ mapped: 'all' });
    const words = mini.bar.words(0, 0x2000)!;
    mini.enable();
    words[0x14 / 4] = 0;
    expect(words[0x1c / 4]).toBe(1);
    mini.twin.step();
    expect(words[0x1c / 4]).toBe(0);
  });
});

describe('enabling', () => {
  it('needs queues, pages and bus master as the standard wants them', () => {
    const wrong: [string, (each: Mini) => void][] = [
      ['AQA', (each) => each.setReg(0x24, 0)],
      ['ASQ', (each) => each.setReg64(0x28, each.pages.segment.address + 64)],
      ['ACQ', (each) => each.setReg64(0x30, 0)],
      ['ASQ or ACQ', (each) => each.setReg64(0x28, 0x7000_0000_000)],
      ['CC.MPS 1', (each) => each.setReg(0x14, 0x460081)],
      ['CC.CSS 6', (each) => each.setReg(0x14, 0x460061)],
      ['order: bus master is off', (each) => each.twin.pci.quiesce()],
    ];
    for (const [what, spoil] of wrong) {
      const each = new Mini();
      each.enable(0x460000);
      spoil(each);
      if ((each.reg(0x14) & 1) === 0) each.setReg(0x14, 0x460001);
      expect(each.reg(0x1c), what).toBe(2);
      expect(each.twin.violations.at(-1)).toBe(`enabled with a wrong ${what}`);
      each.close();
    }
  });

  it('takes so many steps, there and back', () => {
    mini = new Mini();
    mini.twin.faults.readySteps = 2;
    mini.enable();
    const seen: number[] = [];
    for (let i = 0; i < 4; i++) {
      mini.twin.step();
      seen.push(mini.reg(0x1c));
    }
    mini.setReg(0x14, 0);
    for (let i = 0; i < 4; i++) {
      mini.twin.step();
      seen.push(mini.reg(0x1c));
    }
    expect(seen).toEqual([0, 0, 1, 1, 1, 1, 0, 0]);
  });

  it('may never end, nor disabling', () => {
    mini = new Mini();
    mini.twin.faults.neverReady = true;
    mini.enable();
    mini.twin.step();
    expect(mini.reg(0x1c)).toBe(0);
    mini.twin.faults.clear();
    mini.setReg(0x14, 0);
    mini.setReg(0x14, 0x460001);
    expect(mini.reg(0x1c)).toBe(1);
    mini.twin.faults.neverIdle = true;
    mini.setReg(0x14, 0);
    mini.twin.step();
    expect(mini.reg(0x1c)).toBe(1);
  });

  it('forgets everything at a reset and touches memory no more', async () => {
    const each = withQueue();
    const page = each.pages.take();
    each.twin.faults.delay({ qid: 1 }, 3);
    each.submit(1, { opcode: 2, nsid: 1, prp1: page });
    each.twin.step();
    each.pages.u8(page, 4096).fill(7);
    each.setReg(0x14, 0);
    for (let i = 0; i < 10; i++) each.twin.step();
    expect(each.pages.u8(page, 4096).every((byte) => byte === 7)).toBe(true);
    each.forget();
    each.enable();
    each.createQueue(1);
    expect(each.transfer(2, 0, 1, { prp1: page }).status).toBe(0);
    expect(each.pages.u8(page, 512).every((byte) => byte === 0)).toBe(true);
    await each.twin.pci.reset();
    expect(each.twin.violations).toEqual([]);
    each.twin.pci.enable();
    expect([each.reg(0x14), each.reg(0x1c), each.reg(0x24)]).toEqual([0, 0, 0]);
  });

  it('does nothing while bus master is off', () => {
    const each = withQueue();
    const page = each.pages.take();
    each.submit(1, { opcode: 2, nsid: 1, prp1: page });
    each.twin.pci.quiesce();
    expect(each.twin.step()).toBe(0);
    each.twin.pci.enable();
    expect(each.twin.step()).toBe(1);
    expect(each.twin.violations).toEqual([]);
  });

  it('shuts down when asked, and takes no commands then', () => {
    const each = withQueue();
    each.twin.faults.shutdownSteps = 1;
    each.setReg(0x14, 0x460001 | (1 << 14));
    expect((each.reg(0x1c) >>> 2) & 3).toBe(1);
    each.twin.step();
    each.twin.step();
    expect((each.reg(0x1c) >>> 2) & 3).toBe(2);
    each.submit(1, { opcode: 0, nsid: 1 });
    expect(each.twin.step()).toBe(0);
  });
});

describe('identify', () => {
  it('gives controller, namespace, list and descriptors', () => {
    const each = ready({
      namespaces: [{ blocks: 5000, blockSize: 4096, metadataBytes: 8 }, { nsid: 4 }],
      mdts: 3,
      sgls: 2,
      shadowDoorbells: 'polled',
    });
    const controller = each.identify(1);
    expect(controller.toString('latin1', 24, 64).trimEnd()).toBe('PENSTOCK TWIN');
    expect([controller[77], controller[512], controller[513]]).toEqual([3, 0x66, 0x44]);
    expect(controller.readUInt16LE(256)).toBe(0x100);
    expect(controller.readUInt32LE(536) & 3).toBe(2);
    const namespace = each.identify(0, 1);
    expect(namespace.readBigUInt64LE(0)).toBe(5000n);
    expect([namespace.readUInt16LE(128), namespace[130]]).toEqual([8, 12]);
    expect(each.identify(0, 3).every((byte) => byte === 0)).toBe(true);
    const list = each.identify(2);
    expect([0, 4, 8].map((at) => list.readUInt32LE(at))).toEqual([1, 4, 0]);
    expect(each.identify(2, 1).readUInt32LE(0)).toBe(4);
    expect([...each.identify(3, 4).subarray(0, 2)]).toEqual([1, 8]);
    expect(each.twin.violations).toEqual([]);
  });

  it('refuses what it does not know', () => {
    const each = ready();
    const prp1 = each.pages.take();
    const status = (dwords: number[], nsid = 0): number =>
      each.admin({ opcode: 6, nsid, prp1, dwords }).status;
    expect(status([0x55])).toBe(Code.INVALID_FIELD | DNR);
    expect(status([0], 0)).toBe(Code.INVALID_NAMESPACE | DNR);
    expect(status([3], 9)).toBe(Code.INVALID_NAMESPACE | DNR);
    expect(each.admin({ opcode: 0x99 }).status).toBe(Code.INVALID_OPCODE | DNR);
    expect(each.admin({ opcode: 6, psdt: 1, prp1, dwords: [1] }).status).toBe(
      Code.INVALID_FIELD | DNR,
    );
  });

  it('takes a page in two halves', () => {
    const each = ready();
    const first = each.pages.take();
    const second = each.pages.take();
    const dwords = [1];
    each.admin({ opcode: 6, prp1: first + 2048, prp2: second, dwords });
    expect(each.pages.u8(first, 4096)[2048 + 77]).toBe(5);
    expect(each.pages.u8(second, 4096).subarray(0, 20)).toEqual(
      new Uint8Array(each.identify(1).subarray(2048, 2068)),
    );
  });

  it('is changed by whoever wants a hostile page', () => {
    const each = ready();
    each.twin.faults.identify = (cns, nsid, page) => page.fill(cns === 1 ? 0xff : nsid);
    expect(each.identify(1).every((byte) => byte === 0xff)).toBe(true);
    expect(each.identify(0, 1)[9]).toBe(1);
  });
});

describe('queues', () => {
  it('are granted as many as the options say', () => {
    const each = ready({ queuesMax: 4 });
    const ask = (value: number) => each.admin({ opcode: 9, dwords: [7, value] });
    expect(ask(0x000f_0001).dw0).toBe(0x0003_0001);
    expect(ask(0xffff_0001).status).toBe(Code.INVALID_FIELD | DNR);
    each.createQueue(1);
    expect(ask(0x0001_0001).status).toBe(Code.COMMAND_SEQUENCE | DNR);
    each.twin.faults.queuesGranted = 0;
    expect(each.admin({ opcode: 0x0a, dwords: [7] }).dw0).toBe(0x0003_0001);
  });

  it('are refused with the error that the standard has for it', () => {
    const each = ready({ entriesMax: 32 });
    const ring = each.pages.take();
    const cq = (dwords: number[], prp1 = ring) => each.admin({ opcode: 5, prp1, dwords }).status;
    const sq = (dwords: number[], prp1 = ring) => each.admin({ opcode: 1, prp1, dwords }).status;
    const size = 7 << 16;
    expect(cq([size, 1])).toBe(Code.QUEUE_ID | DNR);
    expect(cq([size | 9, 1])).toBe(Code.QUEUE_ID | DNR);
    expect(cq([1, 1])).toBe(Code.QUEUE_SIZE | DNR);
    expect(cq([(32 << 16) | 1, 1])).toBe(Code.QUEUE_SIZE | DNR);
    expect(cq([size | 1, 0])).toBe(Code.INVALID_FIELD | DNR);
    expect(cq([size | 1, 1], ring + 8)).toBe(Code.PRP_OFFSET | DNR);
    expect(cq([size | 1, 3 | (8 << 16)])).toBe(Code.INTERRUPT_VECTOR | DNR);
    expect(cq([size | 1, 1])).toBe(0);
    expect(cq([size | 1, 1])).toBe(Code.QUEUE_ID | DNR);
    const other = each.pages.take();
    expect(sq([size | 1, 1], other)).toBe(Code.QUEUE_ID | DNR);
    expect(sq([size | 1, 1 | (2 << 16)], other)).toBe(Code.CQ_INVALID | DNR);
    expect(sq([size | 1, 1 | (1 << 16)], ring)).toBe(Code.INVALID_FIELD | DNR);
    expect(each.twin.violations).toHaveLength(1);
    expect(sq([size | 1, 1 | (1 << 16)], other)).toBe(0);
    expect(each.admin({ opcode: 4, dwords: [1] }).status).toBe(Code.QUEUE_DELETION | DNR);
    expect(each.admin({ opcode: 0, dwords: [1] }).status).toBe(0);
    expect(each.admin({ opcode: 4, dwords: [1] }).status).toBe(0);
    expect(each.admin({ opcode: 4, dwords: [1] }).status).toBe(Code.QUEUE_ID | DNR);
  });

  it('go round with the phase, sqhd and sqid of each completion', () => {
    const each = withQueue();
    for (let i = 0; i < 20; i++) {
      const done = each.run(1, { opcode: 0, nsid: 1 });
      expect(done).toMatchObject({ status: 0, sqid: 1, sqhd: (i + 1) % 8 });
    }
  });

  it('are not overrun: completions wait until the head was rung', () => {
    const each = withQueue({ mapped: 'doorbells' });
    for (let i = 0; i < 7; i++) each.submit(1, { opcode: 0, nsid: 1 });
    expect(each.twin.step()).toBe(7);
    each.submit(1, { opcode: 0, nsid: 1 });
    expect(each.twin.step()).toBe(0);
    expect(each.poll(1)).not.toBeNull();
    expect(each.twin.step()).toBe(1);
    expect(each.twin.violations).toEqual([]);
  });

  it.each(['none', 'doorbells'] as const)('know an illegal doorbell (mapped: %s)', (mapped) => {
    const each = withQueue({ mapped });
    each.ring(1, 8);
    each.ringHead(1, 1);
    each.ring(5, 1);
    each.twin.step();
    each.submit(1, { opcode: 0, nsid: 1 });
    for (let i = 0; i < 7; i++) each.submit(1, { opcode: 0, nsid: 1 });
    each.twin.step();
    each.twin.check();
    const text = each.twin.violations.join('\n');
    expect(text).toContain('SQ 1: tail 8 rung, of 8');
    expect(text).toContain('CQ 1: head 1 rung, with head 0, tail 0');
    expect(text).toContain('doorbell 10');
  });

  it('know a tail that runs over entries in use', () => {
    const each = withQueue();
    each.twin.faults.drop({ qid: 1, count: Infinity });
    for (let i = 0; i < 7; i++) each.submit(1, { opcode: 0, nsid: 1 });
    each.twin.step();
    expect(each.twin.violations).toEqual([]);
    each.submit(1, { opcode: 0, nsid: 1 });
    each.twin.step();
    expect(each.twin.violations).toHaveLength(1);
  });
});

describe('interrupts', () => {
  it('signal the vector of the queue once per step, and not while it is masked', () => {
    const each = ready();
    const fds = each.twin.pci.enableInterrupts(3);
    each.createQueue(1, 2);
    const run = () => {
      each.submit(1, { opcode: 0, nsid: 1 });
      each.submit(1, { opcode: 0, nsid: 1 });
      each.twin.step();
      each.poll(1);
      each.poll(1);
      return native.eventfdDrain(fds[2]!);
    };
    expect(run()).toBe(1);
    const control = each.twin.pci.vectorControl(2)!;
    control.words[control.index] = 1;
    expect(run()).toBe(0);
    control.words[control.index] = 0;
    each.twin.step();
    expect(native.eventfdDrain(fds[2]!)).toBe(1);
    each.twin.faults.mute = true;
    expect(run()).toBe(0);
    each.twin.faults.mute = false;
    each.twin.pci.disableInterrupts();
    each.submit(1, { opcode: 0, nsid: 1 });
    each.twin.step();
    expect(each.twin.violations).toEqual([]);
  });
});

describe('events and namespaces', () => {
  const changed = { opcode: 2, dwords: [4 | (1023 << 16)] };

  it('tell of a namespace once, until the list of changed ones was read', () => {
    const each = ready();
    each.admin({ opcode: 9, dwords: [0x0b, 0x100] });
    const cid = each.submit(0, { opcode: 0x0c });
    each.twin.step();
    expect(each.poll(0)).toBeNull();
    each.twin.addNamespace({ nsid: 7 });
    each.twin.resize(1, 10);
    each.twin.step();
    expect(each.poll(0)).toMatchObject({ cid, dw0: 2 | (4 << 16), status: 0 });
    each.submit(0, { opcode: 0x0c });
    each.twin.removeNamespace(7);
    each.twin.step();
    expect(each.poll(0)).toBeNull();
    const prp1 = each.pages.take();
    each.submit(0, { ...changed, prp1 });
    each.twin.step();
    expect(each.poll(0)).toMatchObject({ status: 0 });
    expect([...each.pages.u32(prp1, 3)]).toEqual([1, 7, 0]);
    each.twin.step();
    expect(each.poll(0)).toMatchObject({ dw0: 2 | (4 << 16) });
  });

  it('are not told to a driver that did not ask', () => {
    const each = ready();
    each.submit(0, { opcode: 0x0c });
    each.twin.addNamespace({ nsid: 7 });
    each.twin.step();
    expect(each.poll(0)).toBeNull();
    expect(each.identify(2).readUInt32LE(4)).toBe(7);
  });

  it('hold so many requests and no more', () => {
    const each = ready({ aerl: 0 });
    each.submit(0, { opcode: 0x0c });
    expect(each.run(0, { opcode: 0x0c }).status).toBe(Code.ASYNC_EVENT_LIMIT | DNR);
  });

  it('give logs, by parts too', () => {
    const each = withQueue();
    each.twin.faults.status({ qid: 1 }, { sct: 2, sc: 0x81, more: true });
    const cid = each.submit(1, { opcode: 2, nsid: 1 });
    each.wait(1);
    const prp1 = each.pages.take();
    expect(each.admin({ opcode: 2, prp1, dwords: [1 | (15 << 16)] }).status).toBe(0);
    const entry = Buffer.from(each.pages.u8(prp1, 64));
    const status = statusOf({ sct: 2, sc: 0x81, more: true });
    expect([entry.readUInt16LE(8), entry.readUInt16LE(10)]).toEqual([1, cid]);
    expect(entry.readUInt16LE(12) >>> 1).toBe(status);
    each.admin({ opcode: 2, prp1, dwords: [2 | (0 << 16)] });
    expect(each.pages.u8(prp1, 4)[1]).toBe(310 & 0xff);
    each.admin({ opcode: 2, prp1, dwords: [2 | (0 << 16), 0, 200] });
    expect(each.pages.u8(prp1, 2)[0]).toBe(310 & 0xff);
    expect(each.admin({ opcode: 2, prp1, dwords: [0x77] }).status).toBe(Code.LOG_PAGE | DNR);
  });
});
