// io_uring forbidden or missing: a seccomp filter answers io_uring_setup with an errno, as
// container runtimes do. The filter is installed by a launcher that then becomes node.

import { describe, expect, it } from 'vitest';
import { MAIN } from '../cli/command.js';
import { childResult, runProgram } from './child.js';

const IO_URING_SETUP = 425;
const ERRNO = { EPERM: 1, ENOSYS: 38 } as const;

/** Python that filters the system call and then runs its arguments. */
function launcher(errno: number): string[] {
  const script = `
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
# BPF: load the call's number; equal to io_uring_setup: that errno; else allow.
program = b''.join(struct.pack('HBBI', *one) for one in [
  (0x20, 0, 0, 0), (0x15, 0, 1, ${IO_URING_SETUP}),
  (0x06, 0, 0, 0x00050000 | ${errno}), (0x06, 0, 0, 0x7fff0000)])
code = ctypes.create_string_buffer(program)
header = struct.pack('HxxxxxxQ', 4, ctypes.addressof(code))
if libc.prctl(38, 1, 0, 0, 0) != 0: sys.exit('no_new_privs: %d' % ctypes.get_errno())
if libc.prctl(22, 2, ctypes.c_char_p(header), 0, 0) != 0:
  sys.exit('seccomp: %d' % ctypes.get_errno())
os.execvp(sys.argv[1], sys.argv[1:])
`;
  return ['python3', '-c', script];
}

describe.each([
  ['EPERM', 'IO_URING_FORBIDDEN', /seccomp|io_uring_disabled/],
  ['ENOSYS', 'IO_URING_MISSING', /5\.10 or later/],
] as const)('io_uring_setup that answers %s', (name, code, hint) => {
  const before = launcher(ERRNO[name]);

  it('is a clear error of opening a file, which is not made, and other devices work', async () => {
    const result = await childResult<{
      ring: { code: string; hint: string; exitCode: number };
      file: string;
      probe: { available: boolean; reason: string; hint: string };
      ram: string;
    }>(
      `
      const caught = (error) => ({ code: error.code, hint: error.hint, exitCode: error.exitCode });
      let ring;
      try { lib.Ring.open({ entries: 4 }); } catch (error) { ring = caught(error); }
      const fs = await import('node:fs');
      const { tmpdir } = await import('node:os');
      const path = fs.mkdtempSync(tmpdir() + '/penstock-forbidden-');
      let file = '';
      try {
        await lib.open('file:' + path + '/f?create=1MiB').catch((error) => {
          file = [error.code, ...fs.readdirSync(path)].join(' ');
        });
      } finally { fs.rmSync(path, { recursive: true }); }
      const memory = await lib.open('ram:1MiB');
      const buffer = memory.memory.alloc(512);
      await memory.write(0, buffer);
      buffer.free();
      await memory.close();
      console.log(JSON.stringify({ ring, file, probe: lib.probeUring(), ram: 'ok' }));
    `,
      { before },
    );
    expect(result.ring).toMatchObject({ code, exitCode: 3 });
    expect(result.ring.hint).toMatch(hint);
    expect(result).toMatchObject({ file: code, probe: { available: false }, ram: 'ok' });
    expect(result.probe.hint).toBe(result.ring.hint);
  });

  it('ends a benchmark with exit code 3 and the hint', async () => {
    const fs = await import('node:fs');
    const { tmpdir } = await import('node:os');
    const folder = fs.mkdtempSync(`${tmpdir()}/penstock-forbidden-`);
    try {
      const uri = `file:${folder}/f?create=1MiB`;
      const bench = [process.execPath, MAIN, 'bench', uri, '--runtime', '1', '--json'];
      const ended = await runProgram([...before, ...bench]);
      expect(ended.code).toBe(3);
      const { error } = JSON.parse(ended.stdout) as { error: { code: string; hint: string } };
      expect(error.code).toBe(code);
      expect(error.hint).toMatch(hint);
    } finally {
      fs.rmSync(folder, { recursive: true });
    }
  });
});
