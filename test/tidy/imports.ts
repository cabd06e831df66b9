// The import graph of lib/: floors, doors, and files that nothing reaches.

import { posix } from 'node:path';

/** Floors of rooms (folders of lib/; each driver is a room) and of the files beside them. */
const FLOORS: Readonly<Record<string, number>> = {
  'native.ts': 0,
  'native-calls.ts': 0,
  'native-fingerprints.ts': 0,
  'errors.ts': 0,
  'units.ts': 0,
  'uri.ts': 0,
  memory: 1,
  wire: 1,
  uring: 2,
  pci: 2,
  hpdi: 3,
  // What drivers share stands beside their folders.
  'drivers/*.ts': 3.5,
  'drivers/*': 4,
  idc: 5,
  dedup: 6,
  failover: 7,
  targets: 7,
  'open.ts': 8,
  bench: 9,
  appliance: 9,
  // The command line and the package's door stand on everything else.
  cli: 10,
  'index.ts': 10,
};

/** Where running or using the package begins. */
const ENTRIES = ['lib/index.ts', 'lib/cli/main.ts'];

/** Files that `file` imports or starts (workers, by URL), as paths in the repository. */
export function importsOf(file: string, text: string): string[] {
  const found = new Set<string>();
  const patterns = [
    /\b(?:import|export)\b[^'";]*?\bfrom\s*'(\.[^']+)'/g,
    /\bimport\s*\(?\s*'(\.[^']+)'/g,
    /\bnew URL\(\s*'(\.[^']+)',\s*import\.meta\.url/g,
  ];
  for (const pattern of patterns) {
    for (const match of text.matchAll(pattern)) {
      const path = posix.join(posix.dirname(file), match[1] ?? '');
      found.add(path.replace(/\.js$/, '.ts'));
    }
  }
  return [...found];
}

/** 'lib/drivers/ram/queue.ts' → 'drivers/ram'; 'lib/open.ts' → 'open.ts'. */
function roomOf(file: string): string {
  const [, first = '', second = ''] = file.split('/');
  return first === 'drivers' ? `drivers/${second}` : first;
}

function floorOf(room: string): number | undefined {
  if (!room.startsWith('drivers/')) return FLOORS[room];
  return FLOORS[room.endsWith('.ts') ? 'drivers/*.ts' : 'drivers/*'];
}

/** One line per import that goes up, sideways, or past a room's door. */
export function floorViolations(file: string, text: string): string[] {
  const room = roomOf(file);
  const floor = floorOf(room);
  if (floor === undefined) return [`${file}: '${room}' has no floor`];
  const violations: string[] = [];
  for (const target of importsOf(file, text)) {
    const other = roomOf(target);
    const otherFloor = floorOf(other);
    if (other === room) continue;
    if (otherFloor === undefined) violations.push(`${file} → ${target}: outside of every room`);
    else if (floor === 0 && otherFloor === 0) continue;
    else if (otherFloor >= floor) {
      violations.push(`${file} (floor ${floor}) → ${target} (floor ${otherFloor})`);
    } else if (!other.endsWith('.ts') && !target.endsWith('/index.ts')) {
      violations.push(`${file} → ${target}: not by the door, index.ts`);
    }
  }
  return violations;
}

/** Files that no entry reaches. */
export function unreachable(files: ReadonlyMap<string, string>, entries = ENTRIES): string[] {
  const reached = new Set<string>();
  const queue = [...entries];
  for (let file = queue.pop(); file !== undefined; file = queue.pop()) {
    const text = files.get(file);
    if (text === undefined || reached.has(file)) continue;
    reached.add(file);
    queue.push(...importsOf(file, text));
  }
  return [...files.keys()].filter((file) => !reached.has(file));
}
