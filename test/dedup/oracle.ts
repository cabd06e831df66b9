// The oracle of deduplication by sequences: what a pool must do with sets that come one after the
// other, written as simply as it can be said (SEEDS, the THN page; DEDUP, "Sets and runs").
//
// Blocks are contents (numbers; 0 is zeros). Places are numbered from 0 in the order in which they
// are given out; an extent has 253 of them.

const EXTENT = 253;
const CANDIDATES = 4;

export class Oracle {
  /** Content of each place. */
  readonly places: number[] = [];
  /** Places by content, the newest last. */
  private readonly known = new Map<number, number[]>();
  private readonly thn: number;

  constructor(thn: number) {
    this.thn = thn;
  }

  /** Where each block of a set is kept: a place, or -1 for zeros. */
  write(set: readonly number[]): number[] {
    const kept: number[] = set.map((content) => (content === 0 ? -1 : NaN));
    if (this.thn > 0 && set.length >= this.thn) {
      for (let i = 0; i < set.length;) {
        const run = this.longest(set, i);
        if (run.length < this.thn || run.length === 0) {
          i++;
          continue;
        }
        for (let b = 0; b < run.length; b++) kept[i + b] = run.place + b;
        i += run.length;
      }
    }
    return kept.map((place, i) => (Number.isNaN(place) ? this.store(set[i]!) : place));
  }

  /** The longest run from block `i` on, the one at the lowest place of several. */
  private longest(set: readonly number[], i: number): { place: number; length: number } {
    let best = { place: -1, length: 0 };
    for (const place of (this.known.get(set[i]!) ?? []).slice(-CANDIDATES)) {
      const end = (Math.floor(place / EXTENT) + 1) * EXTENT;
      let length = 0;
      while (
        i + length < set.length &&
        place + length < end &&
        set[i + length] !== 0 &&
        this.places[place + length] === set[i + length]
      ) {
        length++;
      }
      const better = length > best.length || (length === best.length && place < best.place);
      if (better) best = { place, length };
    }
    return best;
  }

  private store(content: number): number {
    const place = this.places.length;
    this.places.push(content);
    const list = this.known.get(content);
    if (list === undefined) this.known.set(content, [place]);
    else list.push(place);
    return place;
  }
}
