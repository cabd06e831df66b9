// Freed blocks, by the checkpoint in whose time they were freed: even and odd ones in lists of
// their own. A list that is full doubles; nothing else is allocated.

const FIRST = 4096;

export class Freed {
  private readonly lists = [new Float64Array(FIRST), new Float64Array(FIRST)];
  private readonly counts = [0, 0];

  push(parity: number, pbn: number): void {
    let list = this.lists[parity]!;
    const count = this.counts[parity]!;
    if (count === list.length) {
      const longer = new Float64Array(count * 2);
      longer.set(list);
      this.lists[parity] = longer;
      list = longer;
    }
    list[count] = pbn;
    this.counts[parity] = count + 1;
  }

  count(parity: number): number {
    return this.counts[parity]!;
  }

  at(parity: number, index: number): number {
    return this.lists[parity]![index]!;
  }

  clear(parity: number): void {
    this.counts[parity] = 0;
  }
}
