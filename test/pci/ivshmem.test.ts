// What sysfs says of ivshmem devices. That their memory is mapped is for guests to show
// (test/guest/ivshmem.test.ts).

import { expect, it } from 'vitest';
import { hostMachine, listIvshmem, mapIvshmem } from '../../lib/pci/index.js';
import { mapRegion } from '../../lib/pci/ivshmem-map.js';
import { treeOf } from '../cli/tree.js';

const NONE = '0x0000000000000000 0x0000000000000000 0x0000000000000000';

function device(address: string, ids: [string, string], memory: string): Record<string, string> {
  const folder = `/sys/bus/pci/devices/${address}`;
  const registers = '0x00000000febf8000 0x00000000febf80ff 0x0000000000040200';
  return {
    [`${folder}/vendor`]: ids[0],
    [`${folder}/device`]: ids[1],
    [`${folder}/class`]: '0x050000',
    [`${folder}/resource`]: [registers, NONE, memory, NONE].join('\n'),
  };
}

const FILES = {
  ...device(
    '0000:00:12.0',
    ['0x1af4', '0x1110'],
    '0x0000000140000000 0x000000017fffffff 0x000000000014220c',
  ),
  ...device('0000:00:11.0', ['0x1af4', '0x1110'], NONE),
  ...device('0000:00:10.0', ['0x1af4', '0x1001'], NONE),
};

it('ivshmem devices are known by their ids, and sized by BAR 2', () => {
  expect(listIvshmem(treeOf(FILES))).toEqual([
    { address: '0000:00:11.0', bytes: 0 },
    { address: '0000:00:12.0', bytes: 2 ** 30 },
  ]);
});

it('others, and those without memory, are not mapped', async () => {
  const machine = { ...hostMachine(), root: treeOf(FILES) };
  const place = { address: 2 ** 36, writable: true };
  const refused = (message: RegExp) =>
    expect.objectContaining({
      code: 'NO_SUCH_DEVICE',
      message: expect.stringMatching(message) as string,
      hint: expect.stringContaining('0000:00:11.0, 0000:00:12.0') as string,
    }) as Error;
  expect(() => mapRegion(machine, '00:10.0', place)).toThrow(refused(/no ivshmem device/));
  expect(() => mapRegion(machine, '00:11.0', place)).toThrow(refused(/no memory by firmware/));
  await expect(mapIvshmem('7f:1f.7', place)).rejects.toMatchObject({ code: 'NO_SUCH_DEVICE' });
});
