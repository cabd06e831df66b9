// Both forms of NVMe's registers, entries and bits agree, and sizes are what the standard says.

import { describe, expect, it } from 'vitest';
import * as commands from '../../../lib/drivers/nvme/commands.js';
import { EFFECTS_LAYOUT, ERROR_LAYOUT } from '../../../lib/drivers/nvme/log-pages.js';
import {
  CONTROLLER_LAYOUT,
  POWER_STATE_LAYOUT,
} from '../../../lib/drivers/nvme/identify-controller.js';
import * as namespaces from '../../../lib/drivers/nvme/identify-namespace.js';
import * as logs from '../../../lib/drivers/nvme/log-pages.js';
import * as registers from '../../../lib/drivers/nvme/registers.js';
import * as status from '../../../lib/drivers/nvme/status.js';
import { checkLayout, decode, type Layout } from '../../../lib/wire/index.js';
import { pageOf } from '../../support/nvme-pages.js';

type Numbers = Readonly<Record<string, number>>;

/** A const enum as the object that it is where tests run, names only. */
function enumOf(module: object, name: string): Numbers {
  const form = (module as Record<string, Numbers>)[name]!;
  const named = Object.entries(form).filter(([key]) => !/^-?\d+$/.test(key));
  expect(named.length).toBeGreaterThan(0);
  return Object.fromEntries(named);
}

/**
 * What of a hot form's bits (FIELD, FIELD_SHIFT, FIELD_MASK, FIELD_VALUE; masks in place) a table
 * does not have so. `word` is the 32-bit word of the register that the hot form is of.
 */
function bitProblems(table: Layout, hot: Numbers, word = 0): string[] {
  const fields = table.fields.filter(({ offset }) => offset === word * 4);
  return Object.entries(hot).flatMap(([name, value]) => {
    const field = fields
      .filter((each) => name === each.name || name.startsWith(`${each.name}_`))
      .sort((a, b) => b.name.length - a.name.length)[0];
    if (field?.bits === undefined) return [`${name}: no such field`];
    const [low, high] = field.bits;
    const mask = ((2 ** (high - low + 1) - 1) * 2 ** low) >>> 0;
    const rest = name.slice(field.name.length);
    if (rest === '_SHIFT') return value === low ? [] : [`${name}: ${value}, not ${low}`];
    if (rest === '_MASK') return value >>> 0 === mask ? [] : [`${name}: not the mask`];
    if (rest === '') return value >>> 0 === mask ? [] : [`${name}: not the bit`];
    return (value & ~mask) >>> 0 === 0 ? [] : [`${name}: outside of its field`];
  });
}

describe('registers', () => {
  const { REGISTERS, REGISTER_BITS } = registers;

  it('stand where both forms say', () => {
    const { DOORBELLS, ...offsets } = enumOf(registers, 'Reg');
    expect(DOORBELLS).toBe(REGISTERS.bytes);
    const table = REGISTERS.fields.map(({ name, offset }) => [name, offset]);
    expect(Object.fromEntries(table)).toEqual(offsets);
  });

  it('stand where NVMe Base 2.0, figure 35, puts them', () => {
    const { CAP, CC, CSTS, AQA, ASQ, ACQ, CMBLOC, CMBMSC, CRTO, PMRCAP, PMRMSCU } = enumOf(
      registers,
      'Reg',
    );
    expect([CAP, CC, CSTS, AQA, ASQ, ACQ]).toEqual([0, 0x14, 0x1c, 0x24, 0x28, 0x30]);
    expect([CMBLOC, CMBMSC, CRTO, PMRCAP, PMRMSCU]).toEqual([0x38, 0x50, 0x68, 0xe00, 0xe18]);
  });

  it.each([
    ['CapLo', 'CAP', 0],
    ['CapHi', 'CAP', 1],
    ['Cc', 'CC', 0],
    ['Csts', 'CSTS', 0],
    ['Aqa', 'AQA', 0],
    ['Cmbloc', 'CMBLOC', 0],
    ['Cmbsz', 'CMBSZ', 0],
    ['CmbmscLo', 'CMBMSC', 0],
    ['Cmbsts', 'CMBSTS', 0],
  ])('have bits in %s as in the table of %s', (hot, cold, word) => {
    expect(bitProblems(REGISTER_BITS[cold]!, enumOf(registers, hot), word)).toEqual([]);
  });

  it('have tables as wide as they are', () => {
    const widths = REGISTERS.fields.map(({ name, bytes }) => [name, bytes] as const);
    for (const [name, bytes] of widths) expect(REGISTER_BITS[name]?.bytes ?? bytes).toBe(bytes);
    expect(Object.keys(REGISTER_BITS).filter((name) => !new Map(widths).has(name))).toEqual([]);
  });

  it('are decoded from a dump', () => {
    // QEMU 7.2: 2048 entries, 32 pages of 4 KiB to 64 KiB, both command sets, no subsystem reset.
    const dump = pageOf(4096, [
      [0, 8, 0x4018200f0107ffn],
      [8, 4, 0x10400],
      [0x14, 4, 0x460001],
      [0x1c, 4, 9],
      [0x24, 4, 0x1f003f],
    ]);
    const { CAP, VS, CC, CSTS, AQA } = registers.decodeRegisters(dump);
    expect(CAP).toMatchObject({ MQES: 2047, CQR: 1, TO: 15, MPSMIN: 0, MPSMAX: 4, DSTRD: 0 });
    expect(CAP).toMatchObject({ CSS: 0xc1, NSSRS: 0, PMRS: 0, CMBS: 0 });
    expect(VS).toEqual({ MJR: 1, MNR: 4, TER: 0 });
    expect(CC).toMatchObject({ EN: 1, CSS: 0, MPS: 0, IOSQES: 6, IOCQES: 4 });
    expect(CSTS).toMatchObject({ RDY: 1, CFS: 0, SHST: 2 });
    expect(AQA).toEqual({ ASQS: 63, ACQS: 31 });
    expect(registers.decodeRegisters(dump.subarray(0, 0x20))).not.toHaveProperty('AQA');
  });
});

describe('entries', () => {
  const inWords = ({ words, ...names }: Numbers): [Numbers, number] => [names, words!];

  it('have the words of the table', () => {
    const [{ cdw0, ...sqe }, sqeWords] = inWords(enumOf(commands, 'Sqe'));
    expect(cdw0).toBe(0);
    expect(checkLayout(commands.SQE_LAYOUT, sqe)).toEqual([]);
    expect([commands.SQE_LAYOUT.bytes, sqeWords]).toEqual([64, 16]);
    expect(commands.CQE_LAYOUT.bytes).toBe(16);
    expect(enumOf(commands, 'Cqe')).toEqual({ dw0: 0, dw1: 1, sqHead: 2, status: 3, words: 4 });
  });

  it('are built as the standard wants them', () => {
    const { Sqe, Cdw0, IoOp } = commands;
    const sqe = new Uint32Array(16);
    sqe[Sqe.cdw0] = IoOp.WRITE | Cdw0.PSDT_SGL | Cdw0.FUSE_SECOND | (0xabcd << Cdw0.CID_SHIFT);
    sqe[Sqe.nsid] = 7;
    sqe[Sqe.prp1Lo] = 0x1000;
    sqe[Sqe.prp1Hi] = 2;
    sqe[Sqe.prp2Hi] = 3;
    sqe[Sqe.cdw12] = 15 | commands.Cdw12.FUA | commands.Cdw12.LR;
    expect(decode(commands.SQE_LAYOUT, new Uint8Array(sqe.buffer))).toMatchObject({
      opcode: 1,
      fuse: 2,
      psdt: 1,
      cid: 0xabcd,
      nsid: 7,
      prp1: 0x2_0000_1000n,
      prp2: 3n * 2n ** 32n,
      cdw12: 0xc000000f,
    });
  });

  it('are read as the standard says', () => {
    const cqe = Uint32Array.of(1, 2, 0x00050009, 0xc2810003);
    expect(decode(commands.CQE_LAYOUT, new Uint8Array(cqe.buffer))).toEqual({
      dw0: 1,
      dw1: 2,
      sqhd: 9,
      sqid: 5,
      cid: 3,
      phase: 1,
      sc: 0x40,
      sct: 1,
      crd: 0,
      more: 1,
      dnr: 1,
    });
    expect(cqe[3]! >>> commands.CqeStatus.STATUS_SHIFT).toBe(0x6140);
    expect(bitProblems(status.STATUS_LAYOUT, lowerNames(enumOf(status, 'Sf')))).toEqual([]);
  });

  it('have opcodes that are the same in both forms', () => {
    expect(commands.ADMIN_OPCODES).toEqual(enumOf(commands, 'AdminOp'));
    expect(commands.IO_OPCODES).toEqual(enumOf(commands, 'IoOp'));
  });

  it.each(['AdminOp', 'IoOp', 'Feature', 'Lid', 'Cns'])('have no number of %s twice', (name) => {
    const values = Object.values(enumOf(commands, name));
    expect(new Set(values).size).toBe(values.length);
    for (const value of values) expect(value).toBeLessThan(256);
  });

  it('name the flags of a transfer one bit each', () => {
    const flags = Object.entries(enumOf(commands, 'Cdw12')).filter(
      ([name]) => !/_(?:MASK|SHIFT)$/.test(name),
    );
    const bits = flags.map(([, flag]) => Math.log2(flag >>> 0));
    expect(bits).toEqual([24, 25, 26, 27, 28, 29, 30, 31]);
  });
});

/** SCT_SHIFT → sct_SHIFT, for the table of the status field; CODE_MASK is of two fields. */
function lowerNames(numbers: Numbers): Numbers {
  const named = Object.entries(numbers).filter(([name]) => name !== 'CODE_MASK');
  return Object.fromEntries(
    named.map(([name, value]) => [name.replace(/^[A-Z]+/, (field) => field.toLowerCase()), value]),
  );
}

describe('pages', () => {
  it.each([
    [CONTROLLER_LAYOUT, 4096],
    [POWER_STATE_LAYOUT, 32],
    [namespaces.NAMESPACE_LAYOUT, 4096],
    [namespaces.LBA_FORMAT_LAYOUT, 4],
    [namespaces.INDEPENDENT_LAYOUT, 4096],
    [namespaces.NVM_CONTROLLER_LAYOUT, 4096],
    [namespaces.NVM_NAMESPACE_LAYOUT, 4096],
    [namespaces.ZNS_NAMESPACE_LAYOUT, 4096],
    [logs.SMART_LAYOUT, 512],
    [ERROR_LAYOUT, 64],
    [logs.FIRMWARE_LAYOUT, 512],
    [logs.SELF_TEST_LAYOUT, 28],
    [EFFECTS_LAYOUT, 4],
  ])('have the size of the standard: %s', ({ bytes }, wanted) => {
    expect(bytes).toBe(wanted);
  });

  it.each([
    ['sqes', 512],
    ['nn', 516],
    ['sgls', 536],
    ['subnqn', 768],
    ['psd', 2048],
    ['vs', 3072],
    ['mdts', 77],
    ['oncs', 520],
    ['vwc', 525],
  ])('of a controller have %s at %i', (name, offset) => {
    expect(CONTROLLER_LAYOUT.fields.find((field) => field.name === name)?.offset).toBe(offset);
  });

  it.each([
    ['flbas', 26],
    ['dlfeat', 33],
    ['noiob', 46],
    ['nguid', 104],
    ['eui64', 120],
    ['lbafs', 128],
    ['vs', 384],
  ])('of a namespace have %s at %i', (name, offset) => {
    const { fields } = namespaces.NAMESPACE_LAYOUT;
    expect(fields.find((field) => field.name === name)?.offset).toBe(offset);
  });
});
