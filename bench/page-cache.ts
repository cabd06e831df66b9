// Random 4 KiB reads of a file that the page cache holds: `penstock bench` against fio and C, in
// turn. See file-comparison.ts. `--rounds 1 --runtime 1` is a quick look.

import { compareOnFile } from './file-comparison.js';
import { parseOptions, program } from './report.js';

await program(() =>
  compareOnFile(
    { schema: 'penstock.bench.page-cache/1', direct: false, ratioToFioMin: 1.1, ratioToCMin: 0.95 },
    parseOptions({ rounds: 5, runtime: 3 }),
  ),
);
