// Each fault of the twin, as a driver would meet it.

import { afterEach, describe, expect, it } from 'vitest';
import { Code, type NvmeTwinOptions, statusOf } from '../support/nvme-twin/index.js';
import { type Completion, Mini } from './mini.js';

const FLUSH = { opcode: 0, nsid: 1 };
let mini: Mini;

function open(options: NvmeTwinOptions = {}): Mini {
  return (mini = Mini.withQueue(options));
}

function flush(): number {
  return mini.submit(1, FLUSH);
}

/** All completions that come within some steps. */
function collect(steps = 4): Completion[] {
  const all: Completion[] = [];
  for (let i = 0; i < steps; i++) {
    mini.twin.step();
    for (let done = mini.poll(1); done !== null; done = mini.poll(1)) all.push(done);
  }
  return all;
}

afterEach(() => {
  mini.close();
  mini.twin.close();
});

describe('commands', () => {
  it('end with the status that was asked for, as often as was said, then as ever', () => {
    open();
    const { faults } = mini.twin;
    faults.status({ qid: 1, opcode: 0, skip: 1, count: 2 }, { sct: 7, sc: 1, dnr: true, crd: 2 });
    const seen = Array.from({ length: 4 }, () => mini.run(1, FLUSH).status);
    const status = statusOf({ sct: 7, sc: 1, dnr: true, crd: 2 });
    expect(status).toBe(0x701 | (1 << 14) | (2 << 11));
    expect(seen).toEqual([0, status, status, 0]);
    expect(faults.isArmed).toBe(false);
  });

  it('are chosen by queue, opcode, namespace, identifier, or anything', () => {
    open();
    const { faults } = mini.twin;
    const fail = { sc: 6 };
    faults.status({ qid: 0, opcode: 0 }, fail);
    faults.status({ nsid: 2 }, fail);
    faults.status({ cid: 0x77 }, fail);
    faults.status({ test: (sqe) => sqe[10] === 5 }, fail);
    expect(mini.run(1, FLUSH).status).toBe(0);
    expect(mini.run(1, { ...FLUSH, cid: 0x77 }).status).toBe(6);
    expect(mini.run(1, { ...FLUSH, nsid: 2 }).status).toBe(6);
    expect(mini.run(1, { ...FLUSH, dwords: [5] }).status).toBe(6);
    expect(faults.isArmed).toBe(true);
    faults.clear();
    expect(faults.isArmed).toBe(false);
  });

  it('fail with or without having been done', () => {
    open();
    const prp1 = mini.pages.take();
    mini.pages.u8(prp1, 512).fill(7);
    const write = { opcode: 1, nsid: 1, prp1 };
    mini.twin.faults.status({ opcode: 1 }, { sc: 6 });
    expect(mini.run(1, write).status).toBe(6);
    expect(mini.twin.namespace(1).read(0, 1)[0]).toBe(0);
    mini.twin.faults.status({ opcode: 1 }, { sc: 6 }, { execute: true });
    expect(mini.run(1, write).status).toBe(6);
    expect(mini.twin.namespace(1).read(0, 1)[0]).toBe(7);
  });

  it('are stuck until they are aborted, if Abort works', () => {
    open();
    mini.twin.faults.drop({ qid: 1, count: 2 });
    const cid = flush();
    const other = flush();
    expect(collect()).toEqual([]);
    mini.twin.faults.abortFails = true;
    const abort = { opcode: 8, dwords: [1 | (cid << 16)] };
    expect(mini.admin(abort).dw0).toBe(1);
    mini.twin.faults.abortFails = false;
    expect(mini.admin(abort).dw0).toBe(0);
    expect(collect()).toMatchObject([{ cid, status: Code.ABORT_REQUESTED }]);
    expect(mini.admin(abort).dw0).toBe(1);
    // What is left ends with its queue.
    expect(mini.admin({ opcode: 0, dwords: [1] }).status).toBe(0);
    expect(mini.poll(1)).toMatchObject({ cid: other, status: Code.SQ_DELETED });
    expect(mini.admin({ opcode: 4, dwords: [1] }).status).toBe(0);
    expect(mini.twin.violations.filter((text) => !text.includes('doorbell'))).toEqual([]);
  });

  it('are done late, and touch memory late', () => {
    open();
    const prp1 = mini.pages.take();
    mini.twin.faults.delay({ opcode: 2 }, 3);
    mini.submit(1, { opcode: 2, nsid: 1, prp1 });
    const quick = flush();
    mini.twin.step();
    expect(mini.poll(1)).toMatchObject({ cid: quick });
    mini.pages.u8(prp1, 512).fill(9);
    mini.twin.step();
    mini.twin.step();
    expect(mini.poll(1)).toBeNull();
    expect(mini.pages.u8(prp1, 512)[0]).toBe(9);
    expect(collect()).toHaveLength(1);
    expect(mini.pages.u8(prp1, 512)[0]).toBe(0);
  });
});

describe('completions', () => {
  it('come twice, or with a wrong identifier, queue or head', () => {
    open();
    const { faults } = mini.twin;
    faults.twice({ qid: 1 });
    const twice = flush();
    expect(collect().map(({ cid }) => cid)).toEqual([twice, twice]);
    faults.wrongCid({ qid: 1 }, 0xfffe);
    faults.wrongSqid({ qid: 1 }, 9);
    faults.wrongSqhd({ qid: 1 }, 0xabc);
    flush();
    flush();
    flush();
    const [cid, sqid, sqhd] = collect();
    expect(cid).toMatchObject({ cid: 0xfffe, sqid: 1 });
    expect(sqid).toMatchObject({ sqid: 9, sqhd: 3 });
    expect(sqhd).toMatchObject({ sqid: 1, sqhd: 0xabc, status: 0 });
  });

  it('may have the phase of the round before, which hides them and what follows', () => {
    open();
    mini.twin.faults.stalePhase({ qid: 1 });
    flush();
    flush();
    expect(collect()).toEqual([]);
    expect(mini.twin.controller.queues.cqs.get(1)!.tail).toBe(2);
  });

  it('are changed by a fuzzer, all of them, or come without a command', () => {
    open();
    mini.twin.faults.completion = (cqe, qid) => {
      if (qid === 1) cqe.set([1, 2], 0);
    };
    flush();
    expect(collect()).toMatchObject([{ dw0: 1 }]);
    mini.twin.faults.completion = null;
    mini.twin.post({ qid: 1, cid: 0x1234, status: 6 });
    expect(mini.poll(1)).toMatchObject({ cid: 0x1234, status: 6, sqid: 1 });
    expect(() => mini.twin.post({ qid: 5, cid: 0 })).toThrow('no completion queue 5');
  });
});

describe('the controller', () => {
  it('fails, and comes back by a reset', () => {
    open();
    mini.twin.fail();
    flush();
    expect(mini.twin.step()).toBe(0);
    expect(mini.reg(0x1c) & 2).toBe(2);
    mini.setReg(0x14, 0);
    mini.forget();
    mini.enable();
    expect(mini.reg(0x1c)).toBe(1);
    mini.createQueue(1);
    expect(mini.run(1, FLUSH).status).toBe(0);
  });

  it.each([0xffffffff, 0])('is pulled out: registers read %i, nothing moves', async (value) => {
    open({ mapped: 'doorbells' });
    const words = mini.bar.words(0x1000, 64)!;
    const page = mini.pages.take();
    mini.pages.u8(page, 4096).fill(3);
    mini.twin.faults.delay({ qid: 1 }, 1);
    mini.submit(1, { opcode: 2, nsid: 1, prp1: page });
    mini.twin.step();
    expect([mini.twin.pci.gone, mini.bar.lost]).toEqual([false, false]);
    mini.twin.remove(value);
    for (let i = 0; i < 5; i++) mini.twin.step();
    expect(mini.pages.u8(page, 4096).every((byte) => byte === 3)).toBe(true);
    expect([mini.reg(0), mini.reg(0x1c), words[0]]).toEqual([value, value, value]);
    expect(mini.twin.pci.config.read16(0)).toBe(value & 0xffff);
    expect([mini.twin.pci.gone, mini.bar.lost]).toEqual([true, true]);
    await expect(mini.twin.pci.reset()).rejects.toMatchObject({ code: 'RESET_FAILED' });
    expect(mini.twin.check()).toEqual([]);
  });

  it('gives fewer queues, wrong registers and wrong config space', () => {
    open();
    mini.twin.faults.queuesGranted = 0;
    mini.admin({ opcode: 0, dwords: [1] });
    mini.admin({ opcode: 4, dwords: [1] });
    expect(mini.admin({ opcode: 9, dwords: [7, 0x0007_0007] }).dw0).toBe(0);
    const prp1 = mini.pages.take();
    const cq = { opcode: 5, prp1, dwords: [(7 << 16) | 2, 1] };
    expect(mini.admin(cq).status).toBe(Code.QUEUE_ID | Code.DNR);
    mini.twin.faults.status({ qid: 0, opcode: 5 }, { sct: 1, sc: 1 });
    expect(mini.admin({ ...cq, dwords: [(7 << 16) | 1, 1] }).status).toBe(0x101);
    mini.twin.mutateRegisters((registers) => (registers[0] = 0x12345678));
    expect(mini.reg(0)).toBe(0x12345678);
    mini.twin.mutateConfig((config) => (config[0x34] = 0x40));
    mini.twin.mutateConfig((config) => (config[0x41] = 0x40));
    expect(mini.twin.pci.config.capabilities().length).toBeGreaterThan(10);
  });

  it('is not left alone while it shuts down without end', () => {
    open();
    mini.twin.faults.neverShutDown = true;
    mini.setReg(0x14, 0x460001 | (1 << 14));
    mini.twin.step();
    expect((mini.reg(0x1c) >>> 2) & 3).toBe(1);
  });

  it('asks for its removal', () => {
    open();
    let asked = 0;
    mini.twin.pci.onRemovalRequested = () => asked++;
    mini.twin.requestRemoval();
    expect(asked).toBe(1);
  });
});

describe('stepping from the event loop', () => {
  it.each(['none', 'doorbells'] as const)('serves what is rung (mapped: %s)', async (mapped) => {
    open({ mapped });
    mini.twin.start();
    mini.twin.start();
    const wait = async (): Promise<Completion> => {
      for (;;) {
        const done = mini.poll(1);
        if (done !== null) return done;
        await new Promise((resolve) => setTimeout(resolve, 1));
      }
    };
    for (let i = 0; i < 3; i++) {
      const cid = flush();
      expect(await wait()).toMatchObject({ cid, status: 0 });
      // Long enough for it to fall to its slow pace.
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    mini.twin.stop();
    flush();
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(mini.poll(1)).toBeNull();
  });
});
