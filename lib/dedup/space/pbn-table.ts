// PbnTable: from numbers of places on the device to others, of a size that stays.

const LOAD_MAX = 0.75;

export class PbnTable {
  count = 0;
  private readonly keys: Float64Array;
  private readonly values: Float64Array;
  private readonly mask: number;
  private readonly most: number;

  /** `size`: a power of two; three quarters of it are of use. */
  constructor(size: number) {
    this.keys = new Float64Array(size);
    this.values = new Float64Array(size);
    this.mask = size - 1;
    this.most = Math.floor(size * LOAD_MAX);
  }

  get isFull(): boolean {
    return this.count >= this.most;
  }

  /** 0: it is not there. */
  get(key: number): number {
    const { keys, mask } = this;
    for (let at = this.place(key); keys[at] !== 0; at = (at + 1) & mask) {
      if (keys[at] === key) return this.values[at]!;
    }
    return 0;
  }

  /** Neither is 0. One more than there is room for empties it before. */
  set(key: number, value: number): void {
    if (this.isFull && this.get(key) === 0) this.clear();
    const { keys, mask } = this;
    let at = this.place(key);
    while (keys[at] !== 0 && keys[at] !== key) at = (at + 1) & mask;
    if (keys[at] === 0) this.count++;
    keys[at] = key;
    this.values[at] = value;
  }

  clear(): void {
    if (this.count > 0) this.keys.fill(0);
    this.count = 0;
  }

  private place(key: number): number {
    const mixed = Math.imul((key >>> 0) ^ Math.imul(key / 4294967296, 0x85ebca6b), 0x9e3779b1);
    return (mixed ^ (mixed >>> 15)) & this.mask;
  }
}
