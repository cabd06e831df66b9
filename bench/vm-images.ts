// What a pool saves on virtual machines' images, and what that costs in read extents, by THN and
// sampling; beside exact deduplication of single blocks, and beside the oracle of the tests.
//
// The images are made from Debian's packages (vm-image-packages.ts), or are those of `--images`.

import { hash } from 'node:crypto';
import { existsSync, mkdirSync, mkdtempSync, readdirSync } from 'node:fs';
import { readFileSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { parseArgs } from 'node:util';
import { BLOCK_BYTES, isZeros, PIECE_BYTES } from '../lib/cli/volume-pieces.js';
import { PenstockError } from '../lib/errors.js';
import { open } from '../lib/open.js';
import { Oracle } from '../test/dedup/oracle.js';
import { packageRoot } from './baseline.js';
import { atLeast, atMost, finish, program, progress, progressEnd, type Cell } from './report.js';
import { scratchFolder } from './scratch.js';
import {
  chart,
  ContentNumbers,
  countDifferent,
  countExtents,
  countKept,
  countLogical,
  llrrmTable,
  markdownTable,
  shortBlocks,
  type Contents,
  type Figures,
  type Places,
} from './vm-image-figures.js';
import { makeImage } from './vm-image-files.js';
import {
  Apt,
  countChanged,
  MACHINES,
  noPackages,
  runTool,
  type Package,
} from './vm-image-packages.js';
import { ImageFile, PIECE_BLOCKS, readBack, withPool, type Image } from './vm-image-pool.js';

const THNS = [1, 2, 4, 8, 16, 32];
/** Held against the oracle alone: no row, nor a point of the chart. */
const THN_MOST = 64;
const SAMPLINGS = [1, 8];
/** References that make a block worth being in LLRRM: without it, the default, and the least. */
const THRESHOLDS = [0, 4, 2];
/** LLRRM, of what the images hold. */
const LLRRM_PART = 0.05;
/** What of the oracle's savings a pool keeps that knows one fingerprint in eight, at THN 8. */
const SAMPLED_BAR = 0.97;
/** Of the pool's device, beside what the images hold. */
const ROOM_BYTES = 2 ** 28;
const MANIFEST = 'packages.json';
const FIGURES = /(?<=<!-- figures -->\n)[\s\S]*(?=<!-- \/figures -->)/;
const LLRRM_FIGURES = /(?<=<!-- llrrm -->\n)[\s\S]*(?=<!-- \/llrrm -->)/;

interface Options {
  json: boolean;
  check: boolean;
  keep: boolean;
  /** Writes table and chart to the repository's docs/. */
  docs: boolean;
  images: string;
  folder: string;
}

function parse(): Options {
  const flag = { type: 'boolean', default: false } as const;
  const text = { type: 'string', default: '' } as const;
  const { values } = parseArgs({
    options: { json: flag, check: flag, keep: flag, docs: flag, images: text, folder: text },
  });
  return values;
}

/** Makes all images in a folder, with a list of what is in them. */
async function makeImages(into: string, scratch: string): Promise<void> {
  // Before anything is downloaded.
  for (const tool of ['mke2fs', 'debugfs']) await runTool(tool, ['-V']);
  const apt = new Apt(scratch);
  progress('reading what the mirrors have');
  await apt.update();
  const plans: Package[][] = [];
  for (const machine of MACHINES) plans.push(await apt.plan(machine));
  if (countChanged(plans[0]!, plans[1]!) === 0) {
    throw noPackages('no package of the release has an update: there are no two versions');
  }
  const all = new Map(plans.flat().map((one) => [`${one.name}=${one.version}`, one]));
  progress(`downloading and unpacking ${all.size} packages`);
  await apt.fetch([...all.values()]);
  for (const [number, { name }] of MACHINES.entries()) {
    progress(`making ${name}`);
    const trees = plans[number]!.map((one) => apt.treeOf(one));
    await makeImage(join(into, `${number + 1}-${name}.img`), name, number, trees);
  }
  const manifest = MACHINES.map((machine, i) => ({ ...machine, packages: plans[i]! }));
  writeFileSync(join(into, MANIFEST), JSON.stringify(manifest, null, 1));
}

/** Reads the images, and numbers what their blocks hold. */
function readImages(folder: string, numbers: ContentNumbers): Image[] {
  const files = existsSync(folder) ? readdirSync(folder) : [];
  const names = files.filter((name) => name.endsWith('.img'));
  if (names.length === 0) {
    throw new PenstockError('NO_SUCH_FILE', `${folder} has no images`, {
      hint: '`--keep` leaves images, and says where; any raw image is one if its name ends in .img',
      exitCode: 3,
    });
  }
  return names.sort().map((name) => {
    progress(`reading ${name}`);
    const path = join(folder, name);
    return { path, name: basename(name, '.img'), contents: contentsOf(path, numbers) };
  });
}

function contentsOf(path: string, numbers: ContentNumbers): Contents {
  const file = new ImageFile(path);
  try {
    const contents = new Int32Array(file.pieces * PIECE_BLOCKS);
    const bytes = Buffer.allocUnsafe(PIECE_BYTES);
    for (let piece = 0; piece < file.pieces; piece++) {
      if (!file.read(piece, bytes)) continue;
      for (let b = 0; b < PIECE_BLOCKS; b++) {
        const block = bytes.subarray(b * BLOCK_BYTES, (b + 1) * BLOCK_BYTES);
        if (isZeros(block)) continue;
        contents[piece * PIECE_BLOCKS + b] = numbers.of(hash('sha256', block));
      }
    }
    return contents;
  } finally {
    file.close();
  }
}

/** Where the oracle keeps each block. */
function runOracle(images: readonly Image[], thn: number): Places[] {
  const oracle = new Oracle(thn);
  return images.map(({ contents }) => {
    const places = new Float64Array(contents.length);
    for (let at = 0; at < contents.length; at += PIECE_BLOCKS) {
      const set = [...contents.subarray(at, at + PIECE_BLOCKS)];
      for (const [b, place] of oracle.write(set).entries()) places[at + b] = place + 1;
    }
    return places;
  });
}

async function measure(images: readonly Image[], distinct: number, report: Report): Promise<void> {
  const contents = images.map((image) => image.contents);
  const logical = countLogical(contents);
  const device = await open(`ram:${roundUp(logical * BLOCK_BYTES + ROOM_BYTES)}`);
  const llrrm = await open(`ram:${roundUp(logical * BLOCK_BYTES * LLRRM_PART)}`);
  const measureOne = async (thn: number, sampling: number, threshold: number): Promise<One> => {
    progress(`THN ${thn}, one fingerprint in ${sampling}, LLRRM from ${threshold} references`);
    const tier = threshold === 0 ? null : { device: llrrm, threshold };
    return withPool(device, images, { thn, sampling, tier }, async (imported) => {
      const { pool, places, seconds } = imported;
      const { stored, repeated } = countKept(contents, places);
      const { extents, seams } = countExtents(places);
      const short = shortBlocks(places, thn);
      const figures = {
        ...{ thn, sampling, threshold, stored, extents, seams, seconds },
        share: (logical - stored) / (logical - distinct),
        llrrmNeed: repeated / logical,
        shortNeed: short.size / logical,
        readings: sampling === 1 ? null : await readBack(pool, images, short),
      };
      return { places, figures };
    });
  };
  try {
    report.extentsAlone = (await measureOne(0, 1, 0)).figures.extents;
    for (const thn of THNS) {
      progress(`oracle, THN ${thn}`);
      const wanted = runOracle(images, thn);
      const saved = logical - countKept(contents, wanted).stored;
      for (const sampling of SAMPLINGS) {
        for (const threshold of sampling === 1 ? [0] : THRESHOLDS) {
          const { places, figures } = await measureOne(thn, sampling, threshold);
          report.figures.push({ ...figures, ofOracle: (logical - figures.stored) / saved });
          if (sampling === 1) report.different += countDifferent(places, wanted);
        }
      }
    }
    const { places } = await measureOne(THN_MOST, 1, 0);
    progress(`oracle, THN ${THN_MOST}`);
    const wanted = runOracle(images, THN_MOST);
    report.different += countDifferent(places, wanted);
    report.sharedAtMost = logical - countKept(contents, wanted).stored;
  } finally {
    await llrrm.close();
    await device.close();
  }
}

interface One {
  readonly places: Places[];
  readonly figures: Omit<Figures, 'ofOracle'>;
}

interface Report {
  readonly figures: Figures[];
  /** Read extents when nothing is shared. */
  extentsAlone: number;
  /** Blocks that the unsampled pool keeps elsewhere than the oracle. */
  different: number;
  /** Blocks that the oracle shares at the largest THN: with none the comparison says nothing. */
  sharedAtMost: number;
}

function roundUp(bytes: number): number {
  return Math.ceil(bytes / 2 ** 22) * 2 ** 22;
}

function rowOf(f: Figures): Record<string, Cell> {
  return {
    THN: String(f.thn),
    sampling: String(f.sampling),
    LLRRM: f.threshold === 0 ? '' : `from ${f.threshold}`,
    'savings, % of maximum': (f.share * 100).toFixed(1),
    '% of oracle': (f.ofOracle * 100).toFixed(1),
    'stored, MiB': ((f.stored * BLOCK_BYTES) / 2 ** 20).toFixed(0),
    'read extents': String(f.extents),
    'at seams': String(f.seams),
    'LLRRM need, %': (f.llrrmNeed * 100).toFixed(2),
    'by short runs': String(f.readings?.short ?? ''),
    'reads per MiB': f.readings?.perMiB.toFixed(2) ?? '',
    'served, %': ((f.readings?.served ?? 0) * 100).toFixed(1),
    seconds: f.seconds.toFixed(1),
  };
}

function writeDocs(figures: readonly Figures[], logical: number): void {
  const docs = join(packageRoot(), 'docs');
  writeFileSync(join(docs, 'dedup-savings.svg'), chart(figures));
  const page = join(docs, 'dedup-savings.md');
  const text = readFileSync(page, 'utf8').replace(FIGURES, `\n${markdownTable(figures)}\n\n`);
  writeFileSync(page, text.replace(LLRRM_FIGURES, `\n${llrrmTable(figures, logical)}\n\n`));
}

await program(async () => {
  const options = parse();
  const parent = options.folder === '' ? tmpdir() : options.folder;
  let { images: folder } = options;
  if (folder === '') {
    const scratch = scratchFolder(parent);
    folder = options.keep ? mkdtempSync(join(parent, 'penstock-vm-images-')) : join(scratch, 'img');
    mkdirSync(folder, { recursive: true });
    await makeImages(folder, scratch);
  }
  const numbers = new ContentNumbers();
  const images = readImages(folder, numbers);
  const report: Report = { figures: [], extentsAlone: 0, different: 0, sharedAtMost: 0 };
  await measure(images, numbers.count, report);
  progressEnd();
  if (options.keep) console.error(`the images are in ${folder}`);
  const { figures } = report;
  const logical = countLogical(images.map(({ contents }) => contents));
  if (options.docs) writeDocs(figures, logical);
  const plain = figures.filter(({ threshold }) => threshold === 0);
  const sampled = plain.find(({ thn, sampling }) => thn === 8 && sampling === 8)!;
  if (!options.json) {
    const bytes = `${((logical * BLOCK_BYTES) / 2 ** 30).toFixed(2)} GiB`;
    const factor = (logical / numbers.count).toFixed(2);
    console.log(`${images.length} images, ${bytes} that are not zeros, exact dedup ${factor}`);
    console.log(`read extents when nothing is shared: ${report.extentsAlone}\n`);
  }
  finish(
    {
      schema: 'penstock.bench.vm-images/1',
      rows: figures.map(rowOf),
      bars: [
        atMost('blocks kept elsewhere than the oracle does, unsampled', report.different, 0),
        atLeast(`blocks that the oracle shares, THN ${THN_MOST}`, report.sharedAtMost, 1),
        atLeast(
          'savings of one fingerprint in 8, THN 8, to the oracle',
          sampled.ofOracle,
          SAMPLED_BAR,
        ),
      ],
      rounds: { logical, distinct: numbers.count, ...report, packages: manifestOf(folder) },
    },
    { json: options.json, check: options.check, rounds: 1, runtime: 0, folder: parent },
  );
});

/** What is in the images, where that was written down; null: it was not. */
function manifestOf(folder: string): unknown {
  try {
    return JSON.parse(readFileSync(join(folder, MANIFEST), 'utf8'));
  } catch {
    return null;
  }
}
