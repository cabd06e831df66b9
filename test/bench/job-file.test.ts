import { describe, expect, test } from 'vitest';
import { PenstockError } from '../../lib/errors.js';
import { parseJobFile } from '../../lib/bench/job-file.js';
import { OPTION_WORDS, defaultJob, findOption, setOption } from '../../lib/bench/option-words.js';
import type { JobOptions } from '../../lib/bench/types.js';

function refusal(action: () => unknown): PenstockError {
  try {
    action();
  } catch (error) {
    if (error instanceof PenstockError) return error;
    throw error;
  }
  throw new Error('nothing was refused');
}

function only(text: string): JobOptions {
  const { jobs } = parseJobFile(text);
  expect(jobs).toHaveLength(1);
  return jobs[0]!;
}

describe('parseJobFile', () => {
  test('shows a line of a file that is no text so that a terminal survives it', () => {
    for (const start of ['', '[', '[a]\n']) {
      const error = refusal(() => parseJobFile(`${start}\x1b[2J\0${'é'.repeat(500)}`));
      expect(error.message).toMatch(/'[ -~…]+'/);
      expect(error.message.length).toBeLessThan(160);
    }
  });

  test('reads sections, defaults, comments and suffixes', () => {
    const { jobs, warnings } = parseJobFile(`
; a comment
# another
[global]
filename=/data/disk.img
ioengine=libaio
bs=4k
direct=1
runtime=30s
time_based
randseed=42

[reader]
rw=randread
iodepth=32
numjobs=4
random_distribution=zipf:1.2

[writer]
rw=randrw
rwmixread=70%
bs=64k
size=1g
offset=1m
rate_iops=5000
ramp_time=500ms
io_size=2GiB
dedupe_percentage=20
verify=crc32c
`);
    expect(jobs[0]).toEqual({
      ...defaultJob(),
      name: 'reader',
      uri: 'file:/data/disk.img?direct=1',
      rw: 'randread',
      bs: 4096,
      iodepth: 32,
      numjobs: 4,
      runtime: 30,
      seed: 42,
      randomDistribution: 'zipf:1.2',
    });
    expect(jobs[1]).toEqual({
      ...defaultJob(),
      name: 'writer',
      uri: 'file:/data/disk.img?direct=1',
      rw: 'randrw',
      rwmixread: 70,
      bs: 65536,
      size: 2 ** 30,
      offset: 2 ** 20,
      runtime: 30,
      rampTime: 0.5,
      rateIops: 5000,
      seed: 42,
      verify: true,
      ioSize: 2 ** 31,
      dedupePercentage: 20,
    });
    expect(warnings).toEqual([
      'line 6: ioengine is passed over: the URI chooses the driver',
      "verify=crc32c: blocks carry Penstock's own position, sequence and CRC-32C",
    ]);
  });

  test('a later [global] changes the jobs below it only', () => {
    const { jobs } = parseJobFile(
      '[global]\nuri=ram:1MiB\n[a]\n[global]\niodepth=8\nuri=null:1MiB\n[b]\n[c]\niodepth=2',
    );
    expect(jobs.map(({ name, uri, iodepth }) => [name, uri, iodepth])).toEqual([
      ['a', 'ram:1MiB', 1],
      ['b', 'null:1MiB', 8],
      ['c', 'null:1MiB', 2],
    ]);
  });

  test('makes URIs of file names', () => {
    expect(only('[a]\nfilename=/d/a?b#c 100%').uri).toBe('file:/d/a%3Fb%23c%20100%25');
    expect(only('[a]\ndirectory=/d\nfilename=e\\:f').uri).toBe('file:/d/e:f');
    expect(only('[a]\nuri=file:/x?sqpoll=1\ndirect=1').uri).toBe('file:/x?sqpoll=1&direct=1');
    expect(only('[a]\nuri=file:/x?direct=0\ndirect').uri).toBe('file:/x?direct=1');
    expect(parseJobFile('[a]', { uri: 'ram:1g' }).jobs[0]?.uri).toBe('ram:1g');
    const ram = parseJobFile('[a]\nuri=ram:1g\ndirect=1');
    expect(ram.jobs[0]?.uri).toBe('ram:1g');
    expect(ram.warnings).toEqual(['line 1: [a]: direct is passed over: ram: has no page cache']);
  });

  test('takes the other spellings that fio takes', () => {
    const job = only(
      '[a]\r\nURI=ram:1g\r\n readwrite = readwrite \r\nblocksize=8K\r\nrwmixwrite=30\r\nseed=3',
    );
    expect(job).toMatchObject({ rw: 'rw', bs: 8192, rwmixread: 70, seed: 3 });
    expect(only('[a]\nuri=ram:1g\nverify=none').verify).toBe(false);
    expect(only('[a]\nuri=ram:1g\nrandom_distribution=zipf').randomDistribution).toBe('zipf:1.1');
    expect(only('[a]\nuri=ram:1g\nrate_iops=10k').rateIops).toBe(10240);
  });

  test('says that a runtime is time-based here', () => {
    const text = '[a]\nuri=ram:1g\nruntime=3';
    expect(parseJobFile(text).warnings).toHaveLength(1);
    expect(parseJobFile(`${text}\ntime_based=1`).warnings).toEqual([]);
    expect(parseJobFile(`${text}\nio_size=1m`).warnings).toEqual([]);
  });

  test('names the nearest word and the line', () => {
    const error = refusal(() => parseJobFile('[a]\nuri=ram:1g\niodept=3', { file: 'x.fio' }));
    expect(error.code).toBe('BAD_OPTION');
    expect(error.exitCode).toBe(2);
    expect(error.message).toBe(
      "x.fio: line 3: unknown word 'iodept'; the nearest known is 'iodepth'",
    );
    expect(error.hint).toContain('random_distribution');
  });

  test.each([
    ['[a]\nuri=ram:1g\nstonewall', 'line 3: stonewall is not supported', 'same time'],
    ['[a]\nuri=ram:1g\nbs=4k,8k', "line 3: bs: '4k,8k' gives several sizes", 'one size'],
    ['[a]\nuri=ram:1g\nsize=50%', "line 3: size: '50%' depends", 'bytes'],
    ['[a]\nuri=ram:1g\nbs=four', "line 3: bs: 'four' is not a size", '4k'],
    ['[a]\nuri=ram:1g\nbs', 'line 3: bs has no value', 'bs=VALUE'],
    ['[a]\nuri=ram:1g\niodepth=0', 'line 3: iodepth: 0 is not between 1 and 32768', '--help'],
    ['[a]\nuri=ram:1g\niodepth=1.5', "line 3: iodepth: '1.5' is not a whole number", '--help'],
    ['[a]\nuri=ram:1g\nrwmixread=101', 'is not between 0 and 100', '--help'],
    ['[a]\nuri=ram:1g\nrw=trim', "'trim' is not one of read, write", '--help'],
    ['[a]\nuri=ram:1g\nrandom_distribution=zipf:1', "'zipf:1' is out of range", 'not 1'],
    ['[a]\nuri=ram:1g\nrandom_distribution=zoned', 'is not a distribution', 'pareto'],
    ['[a]\nuri=ram:1g\ntime_based', 'line 1: [a]: time_based needs a runtime', 'runtime=30s'],
    ['[a]\nrw=read', 'line 1: [a] has no filename and no uri', 'uri=ram:1GiB'],
    ['[a]\nfilename=/a:/b', 'filename names several files', 'each file'],
    ['rw=read', 'stands before the first section', '[global]'],
    ['[]', "'[]' is not a section", '[name]'],
    ['[global]\nrw=read', 'the job file has no job', '[name]'],
    ['', 'the job file has no job', '[name]'],
  ])('refuses %j', (text, message, hint) => {
    const error = refusal(() => parseJobFile(text));
    expect(error.code).toBe('BAD_OPTION');
    expect(error.exitCode).toBe(2);
    expect(error.message).toContain(message);
    expect(error.hint).toContain(hint);
  });
});

describe('OPTION_WORDS', () => {
  test('covers every option of a job but its URI, each once', () => {
    const keys = OPTION_WORDS.map((word) => word.key as string);
    expect([...keys, 'uri'].sort()).toEqual(Object.keys(defaultJob()).sort());
    const spellings = OPTION_WORDS.flatMap((word) => [word.name, ...(word.aliases ?? [])]);
    expect(new Set(spellings).size).toBe(spellings.length);
  });

  test('every default passes its own check', () => {
    for (const word of OPTION_WORDS) {
      const job = defaultJob();
      const text = word.kind === 'flag' ? (word.default === true ? '1' : '0') : `${word.default}`;
      setOption(job, word, text, word.name);
      expect(job).toEqual(defaultJob());
    }
  });

  test('is found by word, flag and alias', () => {
    expect(findOption('ramp_time')).toBe(findOption('ramp-time'));
    expect(findOption('seed')?.key).toBe('seed');
    expect(findOption('randseed')?.key).toBe('seed');
    expect(findOption('nonsense')).toBeNull();
  });
});
