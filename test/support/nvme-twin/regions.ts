// Regions: pieces of the address space with what a device may do there, found by their pages.

const PAGE_SHIFT = 12;

export interface Region {
  readonly address: number;
  readonly bytes: number;
  /** 1: the device may read, 3: read and write. */
  readonly access: number;
  readonly name: string;
  /** How many operations registered it. */
  uses: number;
}

export class Regions {
  private readonly pages = new Map<number, Region[]>();
  private count = 0;

  get size(): number {
    return this.count;
  }

  add(address: number, bytes: number, access: number, name: string): void {
    const known = this.exact(address, bytes, access);
    if (known !== undefined) {
      known.uses++;
      return;
    }
    const region = { address, bytes, access, name, uses: 1 };
    this.count++;
    for (const page of pagesOf(address, bytes)) {
      const list = this.pages.get(page);
      if (list === undefined) this.pages.set(page, [region]);
      else list.push(region);
    }
  }

  /** Takes back one `add`; false when there was none. */
  remove(address: number, bytes: number, access: number): boolean {
    const region = this.exact(address, bytes, access);
    if (region === undefined) return false;
    if (--region.uses > 0) return true;
    this.count--;
    for (const page of pagesOf(address, bytes)) {
      const rest = this.pages.get(page)!.filter((each) => each !== region);
      if (rest.length === 0) this.pages.delete(page);
      else this.pages.set(page, rest);
    }
    return true;
  }

  clear(): void {
    this.pages.clear();
    this.count = 0;
  }

  all(): Region[] {
    return [...new Set([...this.pages.values()].flat())];
  }

  /** Whether every byte lies in regions that allow the access (several may touch each other). */
  covers(address: number, bytes: number, access: number): boolean {
    const end = address + bytes;
    let at = address;
    while (at < end) {
      let next = at;
      for (const region of this.at(at)) {
        const regionEnd = region.address + region.bytes;
        if ((region.access & access) !== access || at < region.address) continue;
        if (regionEnd > next) next = regionEnd;
      }
      if (next === at) return false;
      at = next;
    }
    return true;
  }

  /** A region that shares a byte with the range. */
  touching(address: number, bytes: number): Region | undefined {
    for (const page of pagesOf(address, bytes)) {
      for (const region of this.pages.get(page) ?? []) {
        if (region.address < address + bytes && address < region.address + region.bytes) {
          return region;
        }
      }
    }
    return undefined;
  }

  private at(address: number): readonly Region[] {
    return this.pages.get(Math.floor(address / 2 ** PAGE_SHIFT)) ?? [];
  }

  private exact(address: number, bytes: number, access: number): Region | undefined {
    return this.at(address).find(
      (each) => each.address === address && each.bytes === bytes && each.access === access,
    );
  }
}

function* pagesOf(address: number, bytes: number): Generator<number> {
  const last = Math.floor((address + Math.max(1, bytes) - 1) / 2 ** PAGE_SHIFT);
  for (let page = Math.floor(address / 2 ** PAGE_SHIFT); page <= last; page++) yield page;
}
