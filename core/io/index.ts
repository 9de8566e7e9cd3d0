export { type CommandOptions, type CommandResult, runCommand } from './command.js';
export { type ConnectOptions, connect } from './connect.js';
export { type AcceptOptions, type Listener, type ListenOptions, listen, listenOn } from './listen.js';
export { type ExchangeEnd, type RunOptions, runExchange } from './run-exchange.js';
export { type ClientTls, clientTls, type ServerTls, type StartTls, serverTls, type TlsMode } from './tls.js';
export { READ_SIZE, type Wire, type WireMarks } from './wire.js';
