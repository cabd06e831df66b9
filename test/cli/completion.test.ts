import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { skipLoudly } from '../support/environment.js';
import { command, penstock } from './command.js';

const folder = mkdtempSync(join(tmpdir(), 'penstock-completion-'));
const scripts = new Map<string, string>();

beforeAll(async () => {
  writeFileSync(join(folder, 'disk one.img'), '');
  for (const shell of ['bash', 'zsh', 'fish']) {
    const { stdout, exitCode } = await penstock(['completion', shell]);
    expect(exitCode).toBe(0);
    const path = join(folder, `penstock.${shell}`);
    writeFileSync(path, stdout);
    scripts.set(shell, path);
  }
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** What bash offers for the last of these words, as it splits them. */
async function bashOffers(...words: string[]): Promise<string[]> {
  const quoted = words.map((word) => `'${word}'`).join(' ');
  const script =
    `source '${scripts.get('bash')}' && COMP_WORDS=(penstock ${quoted}) && ` +
    `COMP_CWORD=${words.length} && _penstock && printf '%s\\n' "\${COMPREPLY[@]}"`;
  const { stdout, stderr, exitCode } = await command('bash', ['-c', script]);
  expect({ stderr, exitCode }).toEqual({ stderr: '', exitCode: 0 });
  return stdout.split('\n').filter((word) => word !== '');
}

describe('bash completion', () => {
  it('offers commands, then the options of the command', async () => {
    expect(await bashOffers('')).toEqual(expect.arrayContaining(['doctor', 'list', 'completion']));
    expect(await bashOffers('do')).toEqual(['doctor']);
    expect(await bashOffers('list', '--')).toEqual(['--json', '--help']);
    expect(await bashOffers('unbind', '--')).toEqual(['--json', '--all', '--dry-run', '--help']);
    expect(await bashOffers('completion', '')).toEqual(['bash', 'zsh', 'fish']);
  });

  it('is registered for the command', async () => {
    const script = `source '${scripts.get('bash')}' && complete -p penstock`;
    expect((await command('bash', ['-c', script])).stdout).toBe('complete -F _penstock penstock\n');
  });
});

describe.each(['zsh', 'fish'])('%s completion', (shell) => {
  it('is a script that the shell can read', async (context) => {
    const program = [`/usr/bin/${shell}`, `/bin/${shell}`].find((path) => existsSync(path));
    if (program === undefined) return skipLoudly(context, `${shell} is not installed`);
    const path = scripts.get(shell) ?? '';
    expect(await command(program, ['-n', path])).toEqual({ stdout: '', stderr: '', exitCode: 0 });
  });
});

describe('completion --json', () => {
  it('carries the same script', async () => {
    const bash = await penstock(['completion', 'bash']);
    const { schema, shell, script } = JSON.parse(
      (await penstock(['completion', 'bash', '--json'])).stdout,
    ) as Record<string, string>;
    expect([schema, shell, script]).toEqual(['penstock.completion/1', 'bash', bash.stdout]);
  });
});

describe('bash completion of bench', () => {
  it('offers choices, files and schemes', async () => {
    expect(await bashOffers('bench', '--rw', 'rand')).toEqual(['randread', 'randwrite', 'randrw']);
    expect(await bashOffers('bench', '--iodepth', '')).toEqual([]);
    expect(await bashOffers('bench', '--ran')).toEqual(['--random-distribution']);
    expect(await bashOffers('bench', 'fi')).toEqual(['file:']);
    const schemes = ['dedup:', 'file:', 'idc:', 'null:', 'nvme:', 'ram:'];
    expect(await bashOffers('bench', '')).toEqual([...schemes, 'idc']);
    expect(await bashOffers('bench', '--qu')).toEqual(['--quick']);
    expect(await bashOffers('bench', '--report', `${folder}/penstock.b`)).toEqual([
      `${folder}/penstock.bash`,
    ]);
    // Bash splits `file:/path` into three words.
    expect(await bashOffers('bench', 'file', ':', `${folder}/penstock.z`)).toEqual([
      `${folder}/penstock.zsh`,
    ]);
  });
});

describe('bash completion of idc', () => {
  it('offers its commands, their options, and the paths of sockets', async () => {
    expect(await bashOffers('idc', 'h')).toEqual(['hub']);
    expect(await bashOffers('idc', 'hub', '--allow')).toEqual(['--allow-uid', '--allow-gid']);
    expect(await bashOffers('idc', 'top', '--o')).toEqual(['--once']);
    expect(await bashOffers('idc', 'ls', `${folder}/penstock.b`)).toEqual([
      `${folder}/penstock.bash`,
    ]);
  });
});
