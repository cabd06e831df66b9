// Runs on the host: starts a guest, says where it is, and waits to be killed.

import { startGuest } from '../guest.js';

const guest = await startGuest({ script: 'sleep 1000' });
console.log(JSON.stringify({ folder: guest.folder }));
setInterval(() => undefined, 1_000);
