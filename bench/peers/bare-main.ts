/** The process of the peer `bare`. Arguments: its port, then host and port of the server. */
import { passBytes } from './bare.js';

const [port, host, target] = process.argv.slice(2);
await passBytes({ host, port: Number(target) }, Number(port));
