import { describe, expect, it } from 'vitest';
import { MAIN, command, penstock } from './command.js';

interface Failure {
  schema: string;
  error: { code: string; message: string; hint: string; cause: string };
}

describe('penstock', () => {
  it('prints its version and help to stdout', async () => {
    expect(await penstock(['--version'])).toMatchObject({
      stdout: expect.stringMatching(/^\d+\.\d+\.\d+\n$/) as string,
      stderr: '',
      exitCode: 0,
    });
    for (const args of [['--help'], ['help'], ['list', '--help'], ['help', 'list']]) {
      const ended = await penstock(args);
      expect(ended.exitCode).toBe(0);
      expect(ended.stdout).toContain('Usage: penstock');
      expect(ended.stderr).toBe('');
    }
    expect((await penstock(['help', 'list'])).stdout).toContain('--json');
  });

  it('without a command is a usage error that shows the help on stderr', async () => {
    const ended = await penstock([]);
    expect(ended).toMatchObject({ stdout: '', exitCode: 2 });
    expect(ended.stderr).toContain('Usage: penstock');
  });

  it.each([
    [['lst'], "unknown command 'lst'", 'Did you mean list?'],
    [['list', '--jsn'], "unknown option '--jsn'", 'Did you mean --json?'],
    [['list', 'extra'], 'too many arguments', 'penstock COMMAND --help'],
    [['completion', 'bsh'], "no completion for 'bsh'", 'bash, zsh, fish'],
    [['completion'], "missing required argument 'shell'", 'penstock COMMAND --help'],
  ])('%j is a usage error', async (args, message, hint) => {
    const people = await penstock(args);
    expect(people).toMatchObject({ stdout: '', exitCode: 2 });
    expect(people.stderr).toMatch(/^penstock: .+\n {2}hint: .+\n$/);
    expect(people.stderr).toContain(message);
    expect(people.stderr).toContain(hint);

    const programs = await penstock([...args, '--json']);
    expect(programs.exitCode).toBe(2);
    const { schema, error } = JSON.parse(programs.stdout) as Failure;
    expect(schema).toBe('penstock.error/1');
    expect(error.message).toContain(message);
    expect(Object.keys(error)).toEqual(['code', 'message', 'hint', 'cause']);
  });

  it('ends quietly when its reader has gone', async () => {
    const pipe = `${process.execPath} ${MAIN} list --json | true; exit \${PIPESTATUS[0]}`;
    expect(await command('bash', ['-c', pipe])).toEqual({ stdout: '', stderr: '', exitCode: 0 });
  });
});

describe('output that cannot be written', () => {
  it.each(['list', 'doctor --json', 'bench null:1MiB --io-size 64k', 'completion bash'])(
    'is a failure that says so: %s',
    async (words) => {
      const line = `${process.execPath} ${MAIN} ${words} > /dev/full`;
      const ended = await command('bash', ['-c', line], { env: { PENSTOCK_QUIET: '1' } });
      expect(ended).toMatchObject({ exitCode: 1 });
      expect(ended.stderr).toMatch(/^penstock: .*ENOSPC.*\n {2}hint: .+\n$/);
    },
  );

  it('to stderr ends the command with its results and no stack', async () => {
    const line = `${process.execPath} ${MAIN} list --json 2> /dev/full`;
    const ended = await command('bash', ['-c', line]);
    expect(ended.exitCode).toBe(0);
    expect(JSON.parse(ended.stdout)).toMatchObject({ schema: 'penstock.list/1' });
    const failed = await command('bash', ['-c', `${process.execPath} ${MAIN} lst 2> /dev/full`]);
    expect(failed).toMatchObject({ stdout: '', exitCode: 2 });
  });
});

describe('penstock list', () => {
  it('prints JSON alone on stdout, and a table for people', async () => {
    const json = await penstock(['list', '--json']);
    expect(json).toMatchObject({ stderr: '', exitCode: 0 });
    const list = JSON.parse(json.stdout) as { schema: string; block: object[]; pci: object[] };
    expect(list.schema).toBe('penstock.list/1');
    const people = await penstock(['list']);
    expect(people.exitCode).toBe(0);
    const rows = people.stdout.split('\n').filter((line) => line.includes('file:/dev/'));
    expect(rows).toHaveLength(list.block.length);
  });

  it('needs no addon', async () => {
    const ended = await penstock(['list'], { env: { PENSTOCK_ADDON: '/nonexistent.node' } });
    expect(ended.exitCode).toBe(0);
  });
});

describe('penstock doctor', () => {
  interface Doctor {
    schema: string;
    ok: boolean;
    checks: { name: string; status: string; detail: string; fix: string }[];
  }

  it('gives every check a status, and exits with 0 or 3 accordingly', async () => {
    const ended = await penstock(['doctor', '--json']);
    const doctor = JSON.parse(ended.stdout) as Doctor;
    expect(doctor.schema).toBe('penstock.doctor/1');
    expect(doctor.checks.map((check) => check.name)).toEqual([
      'kernel',
      'node',
      'addon',
      'io_uring',
      'hugepages 2M',
      'hugepages 1G',
      'memlock',
      'iommu',
      'vfio',
      'cpu',
      'cgroup',
      'tmp',
    ]);
    expect(doctor.checks.find((check) => check.name === 'addon')?.status).toBe('ok');
    expect(doctor.ok).toBe(doctor.checks.every((check) => check.status !== 'fail'));
    expect(ended.exitCode).toBe(doctor.ok ? 0 : 3);
  });

  it('is not ready without the addon, and says how to build it', async () => {
    const ended = await penstock(['doctor'], { env: { PENSTOCK_ADDON: '/nonexistent.node' } });
    expect(ended.exitCode).toBe(3);
    expect(ended.stdout).toMatch(/^fail {2}addon .*\n +→ Build it with `npm run build`/m);
  });
});
