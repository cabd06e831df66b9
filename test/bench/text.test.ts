import { describe, expect, test } from 'vitest';
import { summarise } from '../../lib/bench/compare.js';
import { formatNanoseconds, median, scaleBytes, scaleCount } from '../../lib/bench/numbers.js';
import { statusText, StatusLine } from '../../lib/bench/status.js';
import { benchText } from '../../lib/bench/text.js';
import type { PeerResult } from '../../lib/bench/fio.js';
import { HOST, busy, idle, jobResult } from '../support/job-results.js';

describe('numbers', () => {
  test('counts keep four characters', () => {
    expect([0, 831, 9999, 10_000, 60_123, 1_043_000, 17_300_000].map(scaleCount)).toEqual(
      ['0', '831', '9999', '10.0k', '60.1k', '1043k', '17.3M'], // as fio 3.33 prints them
    );
    expect(scaleCount(99_960)).toBe('100k');
  });
  test('sizes are powers of 1024', () => {
    expect([512, 5_056_512, 246_415_360, 2 ** 40].map(scaleBytes)).toEqual([
      '512B',
      '4938KiB',
      '235MiB',
      '1024GiB',
    ]);
  });
  test('nanoseconds take the unit that fits', () => {
    expect([70, 999, 1042, 12_340_000, 2.5e9].map(formatNanoseconds)).toEqual([
      '70 ns',
      '999 ns',
      '1.04 µs',
      '12.3 ms',
      '2.5 s',
    ]);
  });
  test('median', () => {
    expect([median([]), median([3, 1, 2]), median([4, 1, 2, 3])]).toEqual([0, 2, 2.5]);
  });
});

describe('benchText', () => {
  test("has fio's lines for a read job", () => {
    const result = jobResult(
      { name: 'r', rw: 'randread', iodepth: 32, numjobs: 2 },
      busy(60_100, 70),
    );
    const text = benchText([result], HOST);
    const lines = text.split('\n');
    expect(lines.slice(0, 4)).toEqual([
      'r: (g=0): rw=randread, bs=(R) 4096B-4096B, (W) 4096B-4096B, (T) 4096B-4096B, ' +
        'ioengine=penstock, iodepth=32',
      '...',
      'penstock-0.1.0',
      'Starting 2 threads',
    ]);
    expect(text).toMatch(/^r: \(groupid=0, jobs=2\): err= 0: pid=\d+: Fri Jan {2}2 .* 2026$/m);
    expect(text).toContain('  read: IOPS=60.1k, BW=235MiB/s (246MB/s)(235MiB/1000msec)\n');
    expect(text).toContain('    clat (nsec): min=70, max=3500, avg=420.00, stdev=140.00\n');
    expect(text).toContain(
      '    clat percentiles (nsec):\n' +
        '     |  1.00th=[   77],  5.00th=[  105], 10.00th=[  140], 20.00th=[  210],\n',
    );
    expect(text).toContain('     | 99.99th=[  770]\n');
    expect(text).toContain('  clat (nsec)  : 250=25.00%, 500=50.00%\n');
    expect(text).toContain('  clat (usec)  : 4=25.00%\n');
    expect(text).toContain('cpu          : usr=21.40%, sys=78.25%, per I/O=1250nsec\n');
    expect(text).toContain('32=100.0%, >=64=0.0%\n');
    expect(text).toContain('issued rwts: total=60100,0,0,0 short=0,0,0,0 dropped=0,0,0,0\n');
    expect(text).toContain('polls=1000, doorbells=500, ios/doorbell=120.20\n');
    expect(text).toContain('gc=1 (0.3msec), allocated=12.0KiB\n');
    expect(text).toContain(
      '   iops        : min=60100, max=60100, avg=60100.00, stdev= 0.00, samples=4',
    );
    expect(text).toContain(
      'Run status group 0 (all jobs):\n   READ: bw=235MiB/s (246MB/s), 235MiB/s-235MiB/s ' +
        '(246MB/s-246MB/s), io=235MiB (246MB), run=1000-1000msec\n',
    );
    expect(text).not.toContain('write:');
    expect(text).not.toContain('WRITE:');
  });

  test('scales latencies to usec and msec as fio does', () => {
    const micro = benchText([jobResult({}, busy(1000, 5000))], HOST);
    expect(micro).toContain('    clat (usec): min=5, max=250, avg=30.00, stdev=10.00\n');
    // fio's percentiles stay in nsec until one of them reaches 100 usec.
    expect(micro).toContain('clat percentiles (nsec):');
    const milli = benchText([jobResult({}, idle(), busy(1000, 10_000_000))], HOST);
    expect(milli).toContain('  write: IOPS=1000');
    expect(milli).toContain('    clat (msec): min=10, max=500, avg=60.00, stdev=20.00\n');
    expect(milli).toContain('    clat percentiles (msec):\n     |  1.00th=[   11],');
  });

  test('tells of errors, damage and interruption', () => {
    const result = jobResult({ verify: true, rateIops: 100 }, busy(100, 100));
    result.errors = 3;
    result.error = { code: 'MEDIA_ERROR', message: 'block 5 unreadable', hint: 'replace it' };
    result.interrupted = true;
    result.verify = {
      checkedBlocks: 100,
      failureCount: 5,
      failures: [{ kind: 'torn', block: 9, offset: 36864, detail: 'two sequences' }],
    };
    const text = benchText([result], HOST);
    expect(text).toContain('err= 3:');
    expect(text).toContain('  error: MEDIA_ERROR: block 5 unreadable\n  hint: replace it\n');
    expect(text).toContain('interrupted');
    expect(text).toContain('checked=100 blocks, damaged=5\n');
    expect(text).toContain('torn      : block 9 at byte 36864: two sequences\n     and 4 more\n');
    // The depth of an open loop is not recorded, so none is claimed.
    expect(text).not.toContain('IO depths');
  });

  test('prints a comparison with ratios of medians', () => {
    const runs = [100, 300, 200].map((ios) => jobResult({ name: 'j' }, busy(ios * 1000, 100)));
    const peers = [100, 100, 100].map((ios): PeerResult => ({
      version: 'fio-3.33',
      jobname: 'j',
      optionSet: 'registered',
      command: ['fio'],
      read: busy(ios * 1000, 200),
      write: idle(),
      clatNs: { read: idle().clatNs, write: idle().clatNs },
      usrCpu: 1,
      sysCpu: 2,
      cpuNsPerIo: 2500,
    }));
    const comparison = summarise(runs[0]!.options, runs, peers);
    expect(comparison.ratio.iops).toBe(2);
    expect(comparison.ratio.cpuNsPerIo).toBe(0.5);
    expect(comparison.result.read.ios).toBe(200_000);
    const text = benchText([comparison.result], HOST, [comparison]);
    expect(text).toContain(
      'j against fio-3.33 (io_uring, registered), medians of 3 rounds in turn:',
    );
    expect(text).toMatch(/IOPS +200k +100k +2\.000\n/);
    expect(text).toMatch(/CPU per I\/O +1\.25 µs +2\.5 µs +0\.500\n/);
    expect(text).toContain('IOPS ratio by round: 1.000 3.000 2.000\n');
  });
});

describe('status line', () => {
  const jobs = [jobResult({ rw: 'randread', runtime: 10, numjobs: 4 }, idle()).options];
  const at = (timeMs: number, readIos: number) => ({
    timeMs,
    readIos,
    writeIos: 0,
    readBytes: readIos * 4096,
    writeBytes: 0,
  });

  test("has fio's form", () => {
    expect(statusText(jobs, [at(4000, 0)], [at(4200, 162_400)])).toBe(
      'Jobs: 4 (f=4): [r(4)][42.0%][r=3172MiB/s][r=812k IOPS][eta 00m:06s]',
    );
  });

  test('knows no end without runtime and size', () => {
    const endless = [{ ...jobs[0]!, runtime: 0 }];
    expect(statusText(endless, [], [at(100, 10)])).toContain('[-.-%]');
    expect(statusText(endless, [], [at(100, 10)])).toContain('[eta --m:--s]');
    const sized = [{ ...jobs[0]!, runtime: 0, size: 4096 * 100, numjobs: 1 }];
    expect(statusText(sized, [], [at(1000, 25)])).toContain('[25.0%]');
    expect(statusText(sized, [], [at(1000, 25)])).toContain('[eta 00m:03s]');
  });

  test('writes to a terminal only, within its width, and clears', () => {
    const written: string[] = [];
    const write = (text: string) => written.push(text);
    const file = new StatusLine(jobs, { isTTY: false, write });
    file.update([at(100, 10)]);
    file.note('x');
    file.clear();
    expect(written).toEqual([]);
    const terminal = new StatusLine(jobs, { isTTY: true, columns: 30, write });
    terminal.update([at(100, 10)]);
    terminal.clear();
    terminal.clear();
    expect(written).toEqual(['\rJobs: 4 (f=4): [r(4)][1.0%][r\x1b[K', '\r\x1b[K']);
  });
});
