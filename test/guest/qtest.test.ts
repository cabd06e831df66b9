// Device models of QEMU without a guest: registers, config space, and DMA into segments.

import { existsSync, readFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { addressSpace, type Segment } from '../../lib/memory/index.js';
import { PciBus, type QtestBar, type QtestFunction } from '../support/qtest-pci.js';
import { Qtest } from '../support/qtest.js';
import { needQemu } from './available.js';
import { nvme } from './devices.js';
import { nothingOf } from './traces.js';

const SLOT = 4;
const OTHER_SLOT = 5;
/** NVMe base 1.4, section 3.1. */
const Register = { CAP: 0x0, VS: 0x8, CC: 0x14, CSTS: 0x1c, AQA: 0x24, ASQ: 0x28, ACQ: 0x30 };
const SQ0TDBL = 0x1000;
const CQ0HDBL = 0x1004;
const QUEUE_DEPTH = 8;
const IDENTIFY = 0x06;
const CNS_CONTROLLER = 1;
const PAGE = 4096;

/** Just enough of a driver: one admin command at a time, its queues in a segment. */
class AdminQueue {
  private readonly registers: QtestBar;
  private readonly segment: Segment;
  private tail = 0;

  constructor(registers: QtestBar, segment: Segment) {
    this.registers = registers;
    this.segment = segment;
    const high = Math.floor(segment.address / 2 ** 32);
    const low = segment.address >>> 0;
    registers.write32(Register.AQA, ((QUEUE_DEPTH - 1) << 16) | (QUEUE_DEPTH - 1));
    registers.write32(Register.ASQ, low);
    registers.write32(Register.ASQ + 4, high);
    registers.write32(Register.ACQ, low + PAGE);
    registers.write32(Register.ACQ + 4, high);
    registers.write32(Register.CC, (4 << 20) | (6 << 16) | 1);
    for (let tries = 0; (registers.read32(Register.CSTS) & 1) === 0; tries++) {
      if (tries > 1_000) throw new Error('the controller does not come up');
    }
  }

  /** Identify Controller into the page at `address`; returns the completion's status. */
  async identify(address: number): Promise<number> {
    const { u32 } = this.segment;
    const command = new Uint32Array(16);
    command.set([IDENTIFY | (this.tail << 16)]);
    command.set([address >>> 0, Math.floor(address / 2 ** 32)], 6);
    command[10] = CNS_CONTROLLER;
    u32.set(command, this.tail * 16);
    const completion = PAGE / 4 + this.tail * 4;
    this.registers.write32(SQ0TDBL, ++this.tail);
    for (let tries = 0; (u32[completion + 3]! & 0x10000) === 0; tries++) {
      if (tries > 1_000) throw new Error('the command does not complete');
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
    this.registers.write32(CQ0HDBL, this.tail);
    return u32[completion + 3]! >>> 17;
  }
}

describe('a machine without a guest', () => {
  let machine: Qtest | undefined;
  let bus: PciBus;
  let controller: QtestFunction;

  async function start(): Promise<Qtest> {
    if (machine !== undefined) return machine;
    machine = await Qtest.start({
      disks: { disk: { bytes: 2 ** 20 } },
      devices: [
        ...nvme({
          serial: 'of-qtest',
          namespaces: ['disk'],
          cmbMiB: 16,
          more: { addr: SLOT },
        }),
        ...['-device', `virtio-rng-pci,addr=${OTHER_SLOT},disable-legacy=off`],
      ],
    });
    bus = new PciBus(machine);
    controller = bus.place(SLOT);
    controller.enable();
    return machine;
  }

  afterAll(async () => {
    await machine?.close();
  });

  it('gives registers of every width, ports and config space', async (context) => {
    needQemu(context);
    await start();
    const { placed, config, identity } = controller;
    expect(config.read32(0)).toBe(0x00101b36);
    expect(config.read8(0xb)).toBe(0x01); // mass storage
    expect(identity.classCode).toBe(0x010802);
    expect(config.capabilities().map(({ id }) => id)).toContain(0x10); // PCI Express
    expect(placed.map(({ index, bytes }) => ({ index, bytes }))).toEqual([
      { index: 0, bytes: 0x4000 },
      { index: 2, bytes: 2 ** 24 },
    ]);
    const registers = controller.bar(0);
    expect(registers.read32(Register.VS)).toBe(0x00010400);
    expect((await start()).readq(placed[0]!.address) & 0xffffn).toBe(2047n);
    expect(() => controller.bar(4)).toThrow('has no memory behind BAR 4');
    const other = bus.place(OTHER_SLOT);
    expect(other.placed.filter((bar) => bar.isPort)).toHaveLength(1);
    expect(() => bus.place(20)).toThrow('there is no function 20.0');
  });

  it('has devices reach a segment at its address, until it is taken away', async (context) => {
    needQemu(context);
    const at = await start();
    const [queues, data] = [0, 1].map(() => addressSpace().create(2 ** 21, { kind: 'device' }));
    at.attach(queues!);
    at.attach(data!);
    expect(queues!.address).toBeGreaterThanOrEqual(2 ** 36);
    data!.u8.fill(0xee);
    expect(at.readl(data!.address)).toBe(0xeeeeeeee);
    const admin = new AdminQueue(controller.bar(0), queues!);
    expect(await admin.identify(data!.address)).toBe(0);
    const text = Buffer.from(data!.u8.subarray(4, 24)).toString('latin1');
    expect(text.trimEnd()).toBe('of-qtest');

    data!.u8.fill(0xee);
    at.detach(data!.address);
    await admin.identify(data!.address);
    expect(data!.u8.every((byte) => byte === 0xee)).toBe(true);
    at.attach(data!);
    expect(await admin.identify(data!.address)).toBe(0);
    expect(data!.u8[4]).toBe('o'.charCodeAt(0));
    expect(() => at.attach(data!)).toThrow(/QMP object-add/);
    at.detach(data!.address);
    at.detach(queues!.address);
    for (const segment of [queues, data]) segment!.close();
  });

  it('answers the monitor, and leaves nothing when it is closed', async (context) => {
    needQemu(context);
    const at = await start();
    expect(at.execute('query-status')).toMatchObject({ running: true });
    expect(() => at.execute('no-such-thing')).toThrow('QMP no-such-thing');
    const file = at.disks['disk']!;
    expect(readFileSync(file)).toHaveLength(2 ** 20);
    await at.close();
    machine = undefined;
    expect(existsSync(file)).toBe(false);
    await nothingOf(dirname(file));
    expect(() => at.readl(0)).toThrow('QEMU has ended');
  });

  it('says what QEMU says when that does not start', async (context) => {
    needQemu(context);
    const starting = Qtest.start({ devices: ['-device', 'no-such-device'] });
    await expect(starting).rejects.toThrow(/no-such-device/);
  });

  it('ends at its time limit, which ends a call that waits for it', async (context) => {
    needQemu(context);
    await using late = await Qtest.start({ devices: [], timeoutMs: 1_000 });
    expect(() => late.event('NEVER')).toThrow('QEMU has ended');
  });
});
