// `penstock nvme …` against a controller of pages, and `nvme list` on made-up trees of sysfs.

import { Command } from 'commander';
import { describe, expect, it, vi } from 'vitest';
import { configureNvme } from '../../lib/cli/nvme.js';
import { siBytes } from '../../lib/cli/nvme-format.js';
import { jsonText } from '../../lib/cli/json-text.js';
import { idCtrlJson, idCtrlText } from '../../lib/cli/nvme-id-ctrl.js';
import { idNsJson, idNsText } from '../../lib/cli/nvme-id-ns.js';
import { listJson, listKernelNamespaces, listText } from '../../lib/cli/nvme-list.js';
import { errorLogText, smartLogJson, smartLogText } from '../../lib/cli/nvme-logs.js';
import { showRegsJson, showRegsText } from '../../lib/cli/nvme-regs.js';
import { parseTarget } from '../../lib/cli/nvme-target.js';
import { PenstockError } from '../../lib/errors.js';
import type { NvmeAdmin } from '../../lib/drivers/nvme/index.js';
import { pageOf, randomBytes } from '../support/nvme-pages.js';
import { treeOf } from './tree.js';

const CONTROLLER = pageOf(4096, [
  [0, 2, 0x1b36],
  [4, 20, 'S123'],
  [24, 40, 'A model'],
  [64, 8, '1.0'],
  [262, 1, 3],
  [516, 4, 2],
]);
const NAMESPACE = pageOf(4096, [
  [0, 8, 2097152n],
  [8, 8, 2097152n],
  [16, 8, 1024n],
  [128 + 2, 1, 9],
]);

/** Two namespaces; `asked` notes what it was asked. */
function adminOf(asked: string[]): NvmeAdmin {
  return {
    identity: {
      vendor: 0x1b36,
      device: 0x10,
      subsystemVendor: 0,
      subsystemDevice: 0,
      classCode: 0x10802,
      revision: 2,
    },
    address: '0000:01:00.0',
    registers: () =>
      pageOf(4096, [
        [0, 8, 0x7ffn],
        [8, 4, 0x10400],
      ]),
    identifyController: () => Promise.resolve(CONTROLLER),
    identifyNamespace: (nsid) => {
      asked.push(`namespace ${nsid}`);
      return Promise.resolve(NAMESPACE);
    },
    activeNamespaces: () => Promise.resolve([1, 2]),
    getLogPage: ({ lid, nsid, bytes }) => {
      asked.push(`log ${lid} of ${nsid.toString(16)}, ${bytes} bytes`);
      return Promise.resolve(new Uint8Array(bytes));
    },
    reset: () => {
      asked.push('reset');
      return Promise.resolve();
    },
    close: () => {
      asked.push('close');
      return Promise.resolve();
    },
  };
}

interface Run {
  stdout: string;
  stderr: string;
  raw: Uint8Array | null;
  asked: string[];
}

/** `penstock nvme …words`, in this process. */
async function nvme(words: readonly string[], files: Record<string, string> = {}): Promise<Run> {
  const run: Run = { stdout: '', stderr: '', raw: null, asked: [] };
  const out = vi.spyOn(process.stdout, 'write').mockImplementation((data) => {
    if (typeof data === 'string') run.stdout += data;
    else run.raw = Uint8Array.from(data);
    return true;
  });
  const error = vi.spyOn(process.stderr, 'write').mockImplementation((data) => {
    run.stderr += String(data);
    return true;
  });
  try {
    const program = new Command('penstock').exitOverride();
    const command = program
      .command('nvme')
      .option('--json')
      .configureOutput({
        outputError: () => undefined,
      });
    const open = (uri: string): Promise<NvmeAdmin> => {
      run.asked.push(`open ${uri}`);
      return Promise.resolve(adminOf(run.asked));
    };
    configureNvme(command, () => undefined, { open, root: treeOf(files) });
    await program.parseAsync(['nvme', ...words], { from: 'user' });
  } finally {
    out.mockRestore();
    error.mockRestore();
  }
  return run;
}

describe('a command on a page', () => {
  const FORMS: [string, (page: Uint8Array) => string, string, Uint8Array][] = [
    ['id-ctrl', idCtrlText, 'vid', CONTROLLER],
    ['id-ns', (page) => idNsText(page, 1), 'nsze', NAMESPACE],
    [
      'smart-log',
      (page) => smartLogText(page, '0000:01:00.0', 0xffffffff),
      'power_cycles',
      new Uint8Array(512),
    ],
    ['error-log', (page) => errorLogText(page, '0000:01:00.0'), 'errors', new Uint8Array(256)],
  ];

  it.each(FORMS)(
    '%s prints text, JSON and raw bytes, and closes',
    async (name, text, key, page) => {
      const plain = await nvme([name, '01:00.0']);
      expect(plain.stdout).toBe(text(page));
      expect(plain.asked[0]).toBe('open nvme:0000:01:00.0');
      expect(plain.asked.at(-1)).toBe('close');
      for (const form of [['--json'], ['-o', 'json']]) {
        const { stdout } = await nvme([name, 'nvme:0000:01:00.0/1', ...form]);
        const json = JSON.parse(stdout) as Record<string, unknown>;
        expect(json['schema']).toBe(`penstock.nvme-${name}/1`);
        expect(json).toHaveProperty(key);
      }
      const { raw, stdout } = await nvme([name, '0000:01:00.0', '--raw-binary']);
      expect([raw, stdout]).toEqual([page, '']);
    },
  );

  it('takes the namespace from the option, the URI, or is 1', async () => {
    const asked = async (...words: string[]): Promise<string | undefined> =>
      (await nvme(['id-ns', ...words])).asked[1];
    expect(await asked('01:00.0', '-n', '0x10')).toBe('namespace 16');
    expect(await asked('nvme:0000:01:00.0/7')).toBe('namespace 7');
    expect(await asked('nvme:0000:01:00.0/7', '--namespace-id=3')).toBe('namespace 3');
    expect(await asked('01:00.0')).toBe('namespace 1');
    await expect(nvme(['id-ns', '01:00.0', '-n', '0'])).rejects.toThrow(/number from 1/);
    await expect(nvme(['id-ns', '01:00.0', '-o', 'xml'])).rejects.toThrow(/Allowed choices/);
  });

  it('reads as many errors as asked for, or as there can be', async () => {
    expect((await nvme(['error-log', '01:00.0'])).asked[1]).toBe('log 1 of ffffffff, 256 bytes');
    expect((await nvme(['error-log', '01:00.0', '-e', '2'])).asked[1]).toContain(' 128 bytes');
  });

  it('shows registers, with their bits on demand', async () => {
    const plain = await nvme(['show-regs', '01:00.0']);
    expect(plain.stdout).toContain('cap     : 7ff\nversion : 10400\ncc      : 0\n');
    const bits = await nvme(['show-regs', '01:00.0', '-H']);
    expect(bits.stdout).toContain('\tMQES     2047       entries a queue may have, less one\n');
    const { raw } = await nvme(['show-regs', '01:00.0', '-o', 'binary']);
    expect(raw).toHaveLength(0xe1c);
  });

  it('resets', async () => {
    const { stdout, asked } = await nvme(['reset', 'nvme:0000:01:00.0']);
    expect([stdout, asked.slice(1)]).toEqual(['', ['reset', 'close']]);
    expect(JSON.parse((await nvme(['reset', '01:00.0', '--json'])).stdout)).toMatchObject({
      reset: true,
    });
  });
});

describe('what names a controller', () => {
  it.each([
    ['01:00.0', { uri: 'nvme:0000:01:00.0', nsid: null, name: '0000:01:00.0' }],
    ['nvme:0000:01:00.0/2', { uri: 'nvme:0000:01:00.0', nsid: 2 }],
    ['nvme+vfio-user:/run/ctl/1', { uri: 'nvme+vfio-user:/run/ctl', nsid: 1, name: '/run/ctl' }],
    ['nvme:0000:01:00.0/1?queues=2', { uri: 'nvme:0000:01:00.0?queues=2', nsid: 1 }],
  ])('%s', (word, wanted) => {
    expect(parseTarget(word)).toMatchObject(wanted);
  });

  it.each([
    ['/dev/nvme0', 'DEVICE_BUSY'],
    ['file:/x', 'UNKNOWN_SCHEME'],
    ['nonsense', 'BAD_URI'],
  ])('is not %s', (word, code) => {
    expect(() => parseTarget(word)).toThrow(
      expect.objectContaining({ code }) as unknown as PenstockError,
    );
  });
});

const KERNEL: Record<string, string> = {
  '/sys/class/nvme/nvme0/serial': 'S123',
  '/sys/class/nvme/nvme0/model': 'A model',
  '/sys/class/nvme/nvme0/firmware_rev': '1.0',
  '/sys/class/nvme/nvme0/address': '0000:02:00.0',
  '/sys/class/nvme/nvme0/nvme0n1/nsid': '1',
  '/sys/class/nvme/nvme0/nvme0c0n2/nsid': '2',
  '/sys/class/nvme-generic/ng0n1/dev': '240:0',
  '/sys/block/nvme0n1/nsid': '1',
  '/sys/block/nvme0n1/size': '2097152',
  '/sys/block/nvme0n1/queue/logical_block_size': '512',
  '/sys/block/nvme0n2/nsid': '2',
  '/sys/block/nvme0n2/size': '4194304',
  '/sys/block/nvme0n2/queue/logical_block_size': '4096',
  '/sys/block/nvme0n2/nuse': '1000',
  '/sys/block/nvme0n2/metadata_bytes': '8',
};

const PCI: Record<string, string> = {
  '/sys/bus/pci/devices/0000:01:00.0/class': '0x010802',
  '/sys/bus/pci/devices/0000:01:00.0/driver': '-> ../vfio-pci',
  '/sys/bus/pci/devices/0000:02:00.0/class': '0x010802',
  '/sys/bus/pci/devices/0000:02:00.0/driver': '-> ../nvme',
  '/sys/bus/pci/devices/0000:03:00.0/class': '0x010802',
  '/sys/bus/pci/devices/0000:04:00.0/class': '0x020000',
};

describe('nvme list', () => {
  it("has nvme-cli's columns for drives of the kernel", () => {
    const dash = (count: number): string => '-'.repeat(count);
    expect(listText(listKernelNamespaces(treeOf(KERNEL)))).toBe(
      [
        'Node                  Generic               SN                   ' +
          'Model                                    Namespace Usage                      ' +
          'Format           FW Rev  ',
        [21, 21, 20, 40, 9, 26, 16, 8].map(dash).join(' '),
        '/dev/nvme0n1          /dev/ng0n1            S123                 ' +
          'A model                                  1                  - /   1.07  GB    ' +
          '512   B +  - B   1.0     ',
        '/dev/nvme0n2          -                     S123                 ' +
          'A model                                  2           4.10  MB /   2.15  GB    ' +
          '  4 KiB +  8 B   1.0     ',
        '',
      ].join('\n'),
    );
  });

  it('asks drives of vfio-pci, and says why it does not ask others', async () => {
    const { stdout, stderr, asked } = await nvme(['list', '--json'], { ...KERNEL, ...PCI });
    const { schema, Devices } = JSON.parse(stdout) as {
      schema: string;
      Devices: Record<string, unknown>[];
    };
    expect(schema).toBe('penstock.nvme-list/1');
    expect(Devices.map(({ DevicePath }) => DevicePath)).toEqual([
      '/dev/nvme0n1',
      '/dev/nvme0n2',
      'nvme:0000:01:00.0/1',
      'nvme:0000:01:00.0/2',
    ]);
    expect(Devices[2]).toEqual({
      NameSpace: 1,
      DevicePath: 'nvme:0000:01:00.0/1',
      Firmware: '1.0',
      ModelNumber: 'A model',
      SerialNumber: 'S123',
      UsedBytes: 524288,
      MaximumLBA: 2097152,
      PhysicalSize: 1073741824,
      SectorSize: 512,
      Address: '0000:01:00.0',
      Driver: 'vfio-pci',
    });
    expect(stderr).toBe(
      "penstock: 0000:03:00.0: not listed, since no driver has it; vfio-pci makes it penstock's\n",
    );
    expect(asked.filter((word) => !word.startsWith('namespace'))).toEqual([
      'open nvme:0000:01:00.0',
      'close',
    ]);
  });

  it('is empty where there is nothing', () => {
    expect(listJson(listKernelNamespaces(treeOf({})))).toEqual({ Devices: [] });
  });
});

describe('what is printed', () => {
  it('never throws, and never sends a control character to a terminal', () => {
    for (let seed = 1; seed <= 20; seed++) {
      const page = randomBytes(4096, seed);
      const texts = [
        idCtrlText(page),
        idNsText(page, 1),
        smartLogText(page.subarray(0, 512), 'x', 1),
        errorLogText(page, 'x'),
        showRegsText(page, true),
      ];
      for (const text of texts) {
        expect(/^[\x20-\x7e\t\n°µ]*$/.test(text)).toBe(true);
        expect(text).not.toMatch(/undefined|NaN|object Object/);
      }
      for (const json of [idCtrlJson(page), idNsJson(page), smartLogJson(page)]) {
        JSON.parse(jsonText(json));
      }
      JSON.parse(jsonText(showRegsJson(page)));
    }
  });

  it('has 64 bits as a number and 128 bits as text', () => {
    const page = pageOf(4096, [
      [0, 8, 2n ** 64n - 1n],
      [48, 8, 2n ** 64n - 1n],
    ]);
    const text = jsonText(idNsJson(page));
    expect(text).toContain('"nsze": 18446744073709551615,');
    expect(text).toContain('"nvmcap": "18446744073709551615",');
  });

  it('has sizes by powers of 1000', () => {
    const shown = (bytes: bigint): string => Object.values(siBytes(bytes)).join(' ');
    expect(shown(0n)).toBe('0.00 ');
    expect(shown(999n)).toBe('999.00 ');
    expect(shown(1_073_741_824n)).toBe('1.07 G');
    expect(shown(2n ** 128n * 512_000n)).toBe('174224571863520.49 Q');
  });

  it('is JSON as JSON.stringify has it', () => {
    const value = { a: [1, 'x\n"', null, true, { b: [], c: {} }], d: undefined, e: 1.5 };
    expect(jsonText(value)).toBe(JSON.stringify(value, null, 2));
  });
});
