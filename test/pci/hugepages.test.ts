import { describe, expect, it } from 'vitest';
import { type Machine, hostMachine, readHugepages, reserveHugepages } from '../../lib/pci/index.js';
import { folderWith } from '../cli/tree.js';
import { systemError } from './made-up-kernel.js';

const MIB = 2 ** 20;
const POOL = '/sys/kernel/mm/hugepages/hugepages-2048kB';
const NODE_POOL = '/sys/devices/system/node/node0/hugepages/hugepages-2048kB';

/** A machine that gives at most so many pages; more of them once memory was compacted. */
function machineWith(mostPages: number, mostCompacted = mostPages) {
  const folder = folderWith({
    [`${POOL}/nr_hugepages`]: '4',
    [`${POOL}/free_hugepages`]: '3',
    [`${POOL}/surplus_hugepages`]: '1',
    '/sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages': '0',
    [`${NODE_POOL}/nr_hugepages`]: '4',
    '/proc/sys/vm/compact_memory': '',
  });
  const host = hostMachine(folder);
  const writes: string[] = [];
  let most = mostPages;
  const machine: Machine = {
    ...host,
    write: (path, text) => {
      writes.push(`${text} > ${path}`);
      if (path.endsWith('compact_memory')) most = mostCompacted;
      else host.write(path, `${Math.min(Number(text), most)}\n`);
    },
  };
  return { machine, writes };
}

const twoMiB = (count: number, node: number | null = null) => ({
  pageBytes: 2 * MIB,
  count,
  node,
});

describe('hugepages', () => {
  it('are read per size, of the machine and of each node', () => {
    const [first, ...rest] = readHugepages(machineWith(9).machine.root);
    expect(first).toEqual({ pageBytes: 2 * MIB, node: null, reserved: 4, free: 3, surplus: 1 });
    expect(rest.map(({ pageBytes, node }) => [pageBytes / MIB, node])).toEqual([
      [2, 0],
      [1024, null],
      [1024, 0],
    ]);
  });

  it('are reserved in the pool of the machine or of a node', () => {
    const { machine, writes } = machineWith(100);
    expect(reserveHugepages(machine, twoMiB(9), false)).toMatchObject({ before: 4, reserved: 9 });
    expect(reserveHugepages(machine, twoMiB(8, 0), false)).toMatchObject({ reserved: 8 });
    expect(writes).toEqual([`9 > ${POOL}/nr_hugepages`, `8 > ${NODE_POOL}/nr_hugepages`]);
  });

  it('come after memory was moved together, where too few came at first', () => {
    const { machine, writes } = machineWith(6, 9);
    expect(reserveHugepages(machine, twoMiB(9), false).reserved).toBe(9);
    expect(writes[1]).toBe('1 > /proc/sys/vm/compact_memory');
  });

  it('that are too few are an environment that is not ready', () => {
    expect(() => reserveHugepages(machineWith(6).machine, twoMiB(9), false)).toThrowError(
      expect.objectContaining({
        code: 'OUT_OF_HUGEPAGES',
        exitCode: 3,
        message: '6 of 9 pages of 2 MiB came (there were 4)',
        hint: expect.stringContaining('hugepagesz=2M hugepages=9') as string,
      }) as Error,
    );
  });

  it('are left alone by a dry run', () => {
    const { machine, writes } = machineWith(9);
    expect(reserveHugepages(machine, twoMiB(9), true)).toEqual({
      writes: [[`${POOL}/nr_hugepages`, '9']],
      before: 4,
      reserved: 4,
    });
    expect(writes).toEqual([]);
  });

  it.each([
    [4 * MIB, null, 'Sizes: 2 MiB, 1 GiB; nodes: 0.'],
    [2 * MIB, 7, 'Sizes: 2 MiB, 1 GiB; nodes: 0.'],
  ])(
    'of %d bytes on node %s are a usage error that names what there is',
    (pageBytes, node, hint) => {
      const { machine } = machineWith(9);
      expect(() => reserveHugepages(machine, { pageBytes, count: 1, node }, false)).toThrowError(
        expect.objectContaining({ code: 'BAD_OPTION', exitCode: 2, hint }) as Error,
      );
    },
  );

  it('need root', () => {
    const { machine } = machineWith(9);
    const denied = { ...machine, write: (path: string) => raise(systemError('EACCES', path)) };
    expect(() => reserveHugepages(denied, twoMiB(9), false)).toThrowError(
      expect.objectContaining({ code: 'PERMISSION_DENIED', exitCode: 3 }) as Error,
    );
  });
});

function raise(error: Error): never {
  throw error;
}
