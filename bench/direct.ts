// Random 4 KiB reads of a file on the real disk past the page cache (O_DIRECT): `penstock bench`
// against fio and C, in turn. See file-comparison.ts.

import { compareOnFile } from './file-comparison.js';
import { parseOptions, program } from './report.js';

await program(() =>
  compareOnFile(
    { schema: 'penstock.bench.direct/1', direct: true, ratioToFioMin: 1, ratioToCMin: null },
    parseOptions({ rounds: 5, runtime: 3 }),
  ),
);
