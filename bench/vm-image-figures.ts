// The figures of vm-images.ts: what exact deduplication of single blocks would save, what a pool
// or the oracle kept of that, and the table and chart of it.

import { ExtentCounter, type ReadExtents } from '../lib/dedup/maps/extents.js';

/** What each block of an image holds, as a number; 0: zeros. */
export type Contents = Int32Array;
/** Where each block of an image is kept, as a number from 1 on; 0: it is zeros. */
export type Places = Float64Array;

/** Numbers contents in the order in which they come. */
export class ContentNumbers {
  private readonly numbers = new Map<string, number>();

  of(hash: string): number {
    const known = this.numbers.get(hash);
    if (known !== undefined) return known;
    const number = this.numbers.size + 1;
    this.numbers.set(hash, number);
    return number;
  }

  /** Different contents: blocks that are left when each is kept once. */
  get count(): number {
    return this.numbers.size;
  }
}

/** Blocks that are not zeros. */
export function countLogical(images: readonly Contents[]): number {
  let count = 0;
  for (const contents of images) for (const content of contents) if (content !== 0) count++;
  return count;
}

export interface Kept {
  /** Blocks that are kept. */
  readonly stored: number;
  /** Contents that are kept more than once: each once in LLRRM would save all the others. */
  readonly repeated: number;
}

export function countKept(images: readonly Contents[], places: readonly Places[]): Kept {
  const known = new Set<number>();
  /** How often each content is kept. */
  const times = new Map<number, number>();
  for (const [i, contents] of images.entries()) {
    const kept = places[i]!;
    for (let b = 0; b < contents.length; b++) {
      if (kept[b] === 0 || known.has(kept[b]!)) continue;
      known.add(kept[b]!);
      times.set(contents[b]!, (times.get(contents[b]!) ?? 0) + 1);
    }
  }
  const repeated = [...times.values()].filter((count) => count > 1).length;
  return { stored: known.size, repeated };
}

/** Of what the maps say: the same as the pool's own count. */
export function countExtents(places: readonly Places[]): ReadExtents {
  const counter = new ExtentCounter();
  for (const kept of places) {
    counter.begin();
    for (const place of kept) if (place !== 0) counter.add(place);
  }
  return counter.result;
}

/** Blocks that one has elsewhere than the other, when both give out their places in one order. */
export function countDifferent(a: readonly Places[], b: readonly Places[]): number {
  const [ranksA, ranksB] = [ranksOf(a), ranksOf(b)];
  let different = 0;
  for (const [i, places] of a.entries()) {
    for (let at = 0; at < places.length; at++) {
      if (ranksA.get(places[at]!) !== ranksB.get(b[i]![at]!)) different++;
    }
  }
  return different;
}

/** Each place's number among all that are used; 0 is none. */
function ranksOf(images: readonly Places[]): Map<number, number> {
  const used = new Set<number>();
  for (const places of images) for (const place of places) if (place !== 0) used.add(place);
  const sorted = Float64Array.from(used).sort();
  const ranks = new Map<number, number>([[0, 0]]);
  sorted.forEach((place, rank) => ranks.set(place, rank + 1));
  return ranks;
}

/** Blocks with several references that lie in a run shorter than THN: what LLRRM is to have. */
export function shortBlocks(images: readonly Places[], thn: number): Set<number> {
  const references = new Map<number, number>();
  const short = new Set<number>();
  for (const places of images) {
    for (let at = 0; at < places.length;) {
      const first = places[at]!;
      let length = 1;
      while (places[at + length] === (first === 0 ? 0 : first + length)) length++;
      for (let place = first; place !== 0 && place < first + length; place++) {
        references.set(place, (references.get(place) ?? 0) + 1);
        if (length < thn) short.add(place);
      }
      at += length;
    }
  }
  for (const place of short) if (references.get(place) === 1) short.delete(place);
  return short;
}

/** What reading a pool's volumes came to. */
export interface Readings {
  /** Reads of the data device for each MiB, all read in sequence, in requests of 128 KiB. */
  readonly perMiB: number;
  /** Of random reads of one block that several images have, those that LLRRM served. */
  readonly served: number;
  /** References to blocks in short runs, that LLRRM was the reason for. */
  readonly short: number;
  /** Blocks that LLRRM has: all, and of those in short runs. */
  readonly held: number;
  readonly heldShort: number;
}

/** What one import of all images came to. */
export interface Figures {
  readonly thn: number;
  readonly sampling: number;
  /** References that make a block worth being in LLRRM; 0: there is none. */
  readonly threshold: number;
  readonly stored: number;
  /** Of what exact deduplication saves. */
  readonly share: number;
  /** Of what the oracle saves at the same THN, all fingerprints known. */
  readonly ofOracle: number;
  readonly extents: number;
  readonly seams: number;
  /** Blocks that LLRRM needs to hold for all that exact deduplication saves, of logical blocks. */
  readonly llrrmNeed: number;
  /** Blocks with several references in runs shorter than THN, of logical blocks. */
  readonly shortNeed: number;
  readonly seconds: number;
  /** null: they were not read. */
  readonly readings: Readings | null;
}

/** Without LLRRM. */
export function markdownTable(all: readonly Figures[]): string {
  const figures = all.filter(({ threshold }) => threshold === 0);
  const thns = [...new Set(figures.map(({ thn }) => thn))];
  const samplings = [...new Set(figures.map(({ sampling }) => sampling))];
  const columns = samplings.flatMap((sampling) => [
    `savings, 1/${sampling}`,
    `extents, 1/${sampling}`,
    `LLRRM, 1/${sampling}`,
  ]);
  const lines = [`| THN | ${columns.join(' | ')} |`, `|---|${'--:|'.repeat(columns.length)}`];
  for (const thn of thns) {
    const cells = samplings.flatMap((sampling) => {
      const one = figures.find((f) => f.thn === thn && f.sampling === sampling)!;
      const { share, extents, llrrmNeed } = one;
      return [percent(share), extents.toLocaleString('en-US'), percent(llrrmNeed)];
    });
    lines.push(`| ${thn} | ${cells.join(' | ')} |`);
  }
  return lines.join('\n');
}

/** What LLRRM changes: those that were read. */
export function llrrmTable(figures: readonly Figures[], logical: number): string {
  const columns = ['savings', 'read extents', 'reads per MiB', 'by short runs', 'need', 'held'];
  const lines = [
    `| THN | threshold | ${columns.join(' | ')} | served |`,
    `|---|---|${'--:|'.repeat(columns.length + 1)}`,
  ];
  for (const { thn, threshold, share, extents, shortNeed, readings } of figures) {
    if (readings === null) continue;
    const { perMiB, served, short, heldShort } = readings;
    const need = shortNeed * logical;
    const tier = [
      short.toLocaleString('en-US'),
      percent(shortNeed),
      need === 0 ? '' : percent(heldShort / need),
      percent(served),
    ];
    const cells = [
      ...[thn, threshold === 0 ? 'no LLRRM' : threshold, percent(share)],
      ...[extents.toLocaleString('en-US'), perMiB.toFixed(2)],
      ...(threshold === 0 ? ['', '', '', ''] : tier),
    ];
    lines.push(`| ${cells.join(' | ')} |`);
  }
  return lines.join('\n');
}

function percent(share: number): string {
  return `${(share * 100).toFixed(1)} %`;
}

const PANEL = { width: 300, height: 200, top: 46, left: 56, apart: 400 };
const COLOURS = ['#0b62a4', '#d9730d', '#3b7d3b', '#8a3ffc'];

interface Panel {
  readonly title: string;
  readonly from: number;
  readonly to: number;
  readonly ticks: readonly number[];
  readonly value: (figures: Figures) => number;
}

/**
 * Savings and read extents by THN, a line for each sampling, and one with LLRRM of the lowest
 * threshold, as the text of an SVG.
 */
export function chart(figures: readonly Figures[]): string {
  const thns = [...new Set(figures.map(({ thn }) => thn))].sort((a, b) => a - b);
  const series = seriesOf(figures);
  const shares = figures.map(({ share }) => share * 100);
  const extents = figures.map((f) => f.extents / 1000);
  const low = Math.floor(Math.min(...shares) / 5) * 5;
  const high = Math.ceil(Math.max(...extents) / 5) * 5;
  const panels: Panel[] = [
    {
      title: 'savings, % of the maximum',
      ...{ from: low, to: 100, ticks: steps(low, 100), value: ({ share }) => share * 100 },
    },
    {
      title: 'read extents, thousands',
      ...{ from: 0, to: high, ticks: steps(0, high), value: (f) => f.extents / 1000 },
    },
  ];
  const { width, height, top, left, apart } = PANEL;
  const x = (i: number): number => (thns.length > 1 ? (i * width) / (thns.length - 1) : width / 2);
  const parts: string[] = [];
  for (const [p, { title, from, to, ticks, value }] of panels.entries()) {
    const y = (v: number): number => round(height - ((v - from) / (to - from)) * height);
    parts.push(`<g transform="translate(${left + p * apart} ${top})">`);
    parts.push(`<text y="-24" font-weight="bold">${title}</text>`);
    for (const tick of ticks) {
      parts.push(`<path d="M0 ${y(tick)}H${width}" stroke="#ddd"/>`);
      parts.push(`<text x="-8" y="${y(tick) + 4}" text-anchor="end">${tick}</text>`);
    }
    for (const [i, thn] of thns.entries()) {
      parts.push(`<text x="${round(x(i))}" y="${height + 18}" text-anchor="middle">${thn}</text>`);
    }
    parts.push(`<text x="${width / 2}" y="${height + 38}" text-anchor="middle">THN</text>`);
    let legend = 0;
    for (const [s, { words, of }] of series.entries()) {
      const points = thns.flatMap((thn, i) => {
        const one = of.find((f) => f.thn === thn);
        return one === undefined ? [] : [`${round(x(i))},${y(value(one))}`];
      });
      const colour = COLOURS[s % COLOURS.length]!;
      const line = `fill="none" stroke="${colour}" stroke-width="2"`;
      parts.push(`<polyline ${line} points="${points.join(' ')}"/>`);
      for (const point of points) {
        const [cx, cy] = point.split(',');
        parts.push(`<circle cx="${cx}" cy="${cy}" r="3" fill="${colour}"/>`);
      }
      parts.push(`<text x="${legend}" y="-8" fill="${colour}">${words}</text>`);
      legend += words.length * 6 + 20;
    }
    parts.push('</g>');
  }
  const [w, h] = [left + apart + width + 24, top + height + 52];
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${w} ${h}" width="${w}" height="${h}"`,
    ' font-family="sans-serif" font-size="12">',
    `<rect width="${w}" height="${h}" fill="#fff"/>`,
    ...parts,
    '</svg>\n',
  ].join('\n');
}

interface Series {
  readonly words: string;
  readonly of: readonly Figures[];
}

function seriesOf(figures: readonly Figures[]): Series[] {
  const plain = figures.filter(({ threshold }) => threshold === 0);
  const samplings = [...new Set(plain.map(({ sampling }) => sampling))].sort((a, b) => a - b);
  const series = samplings.map((rate) => ({
    words: rate === 1 ? 'all fingerprints' : `one in ${rate}`,
    of: plain.filter(({ sampling }) => sampling === rate),
  }));
  const tiers = figures.filter(({ threshold }) => threshold !== 0);
  if (tiers.length === 0) return series;
  const least = Math.min(...tiers.map(({ threshold }) => threshold));
  const [{ sampling }] = tiers as [Figures];
  const words = `one in ${sampling}, LLRRM`;
  return [...series, { words, of: tiers.filter(({ threshold }) => threshold === least) }];
}

/** Four to eight round figures from one end to the other. */
function steps(from: number, to: number): number[] {
  const step = [1, 2, 5, 10, 20, 50, 100].find((size) => (to - from) / size <= 8) ?? to - from;
  return Array.from({ length: Math.floor((to - from) / step) + 1 }, (_, i) => from + i * step);
}

function round(value: number): number {
  return Math.round(value * 10) / 10;
}
