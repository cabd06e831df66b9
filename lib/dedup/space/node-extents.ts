// Which extents hold nodes, by number: one in a few hundred, which nobody finds by going over all.

export class NodeExtents {
  private readonly list: number[] = [];

  get count(): number {
    return this.list.length;
  }

  at(index: number): number {
    return this.list[index]!;
  }

  /** One that is not among them. */
  add(extent: number): void {
    this.list.push(extent);
  }

  /** It holds blocks from now on. */
  remove(extent: number): void {
    const at = this.list.indexOf(extent);
    if (at < 0) return;
    this.list[at] = this.list.at(-1)!;
    this.list.pop();
  }
}
