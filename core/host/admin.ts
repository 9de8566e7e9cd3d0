import { createServer, type IncomingMessage, request as open, type ServerResponse } from 'node:http';
import { CodedError, type Log } from '../contract/index.js';
import type { Address } from './config/index.js';
import type { Metrics } from './metrics.js';

/** What the admin interface shows. */
export interface AdminSources {
  readonly metrics: Metrics;
  /** Healthy when clients can be served; `reasons` says why not. */
  health(): { readonly healthy: boolean; readonly reasons: readonly string[] };
  /** Plain data for operators, without secrets. */
  status(): object;
  /** Does what an operator wants of the pair; rejects with a CodedError that says why it cannot. */
  order(what: Order): Promise<object>;
}

/** What operators can want of a gateway of a pair. */
export const ORDERS = ['takeover', 'drain', 'undrain'] as const;
export type Order = (typeof ORDERS)[number];

/** Orders carry this header: no web page can make a browser send it to another host (Fetch standard, "CORS-safelisted request-header"). */
const ORDER_HEADER = 'x-outlive-order';

/** A running admin interface. */
export interface Admin {
  readonly host: string;
  readonly port: number;
  /** Stops listening and ends what is open. */
  stop(): Promise<void>;
}

/** Starts the HTTP interface for operators: `/metrics`, `/health`, `/status` to read, and the orders to post. */
export async function startAdmin(listen: Address, sources: AdminSources, log: Log): Promise<Admin> {
  const server = createServer((request, response) => {
    answer(request, response, sources).catch((error: unknown) => {
      log.error({ err: error, path: request.url }, 'the admin interface failed to answer');
      if (!response.headersSent) send(response, 500, 'text/plain', 'failed; see the log\n');
      else response.destroy();
    });
  });
  // A scraper that sends its request slowly holds nothing but its own connection, and not for long.
  server.requestTimeout = 10_000;
  server.maxConnections = 100;
  await new Promise<void>((resolve, reject) => {
    server.once('error', (error: NodeJS.ErrnoException) => {
      const where = `${listen.host}:${listen.port}`;
      const message = `The admin interface cannot listen on ${where} (${error.code}). Free the address or change admin.listen.`;
      reject(new CodedError('OUTLIVE_ADMIN_LISTEN', 'config', message, { cause: error }));
    });
    server.listen(listen.port, listen.host, resolve);
  });
  server.on('error', (error) => log.error({ err: error }, 'the admin interface had an error'));
  const { address, port } = server.address() as { address: string; port: number };
  return {
    host: address,
    port,
    stop: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}

async function answer(request: IncomingMessage, response: ServerResponse, sources: AdminSources): Promise<void> {
  const path = request.url?.replace(/\?.*$/, '');
  const order = ORDERS.find((one) => path === `/${one}`);
  if (order !== undefined) {
    if (request.method !== 'POST' || request.headers[ORDER_HEADER] === undefined) {
      response.setHeader('Allow', 'POST');
      return send(response, 405, 'text/plain', `only POST, with the header ${ORDER_HEADER}\n`);
    }
    try {
      return sendJson(response, 200, await sources.order(order));
    } catch (error) {
      if (!(error instanceof CodedError)) throw error;
      return sendJson(response, 409, { error: { code: error.code, message: error.message } });
    }
  }
  if (request.method !== 'GET' && request.method !== 'HEAD') {
    response.setHeader('Allow', 'GET, HEAD');
    return send(response, 405, 'text/plain', 'only GET\n');
  }
  switch (path) {
    case '/metrics':
      return send(response, 200, sources.metrics.contentType, await sources.metrics.text());
    case '/health': {
      const health = sources.health();
      return sendJson(response, health.healthy ? 200 : 503, health);
    }
    case '/status':
      return sendJson(response, 200, sources.status());
    default:
      return send(
        response,
        404,
        'text/plain',
        'there are /metrics, /health and /status, and /takeover, /drain and /undrain to post\n',
      );
  }
}

/**
 * Asks the admin interface of a running gateway.
 * @returns the JSON of its answer
 *
 * Rejects with OUTLIVE_ADMIN_UNREACHABLE when nobody answers, and with the gateway's own error when it refuses.
 */
export function askAdmin(where: Address, order: Order | 'status', timeoutMs: number): Promise<unknown> {
  const name = `${where.host}:${where.port}`;
  return new Promise((resolve, reject) => {
    const unreachable = (cause: Error) => {
      const message = `no gateway answers at ${name} (${cause.message}); is it running, with this configuration?`;
      reject(new CodedError('OUTLIVE_ADMIN_UNREACHABLE', 'network', message, { cause }));
    };
    const request = open(
      {
        host: where.host,
        port: where.port,
        path: `/${order}`,
        method: order === 'status' ? 'GET' : 'POST',
        headers: { [ORDER_HEADER]: '1' },
        timeout: timeoutMs,
      },
      (response) => {
        let text = '';
        response.setEncoding('utf8');
        response.on('data', (chunk: string) => {
          text += chunk;
        });
        response.on('error', unreachable);
        response.on('end', () => {
          try {
            const answer = JSON.parse(text) as { error?: { code: string; message: string } };
            if (answer.error === undefined) resolve(answer);
            else reject(new CodedError(answer.error.code, 'gateway', answer.error.message));
          } catch (error) {
            unreachable(error as Error);
          }
        });
      },
    );
    request.on('timeout', () => request.destroy(new Error('it does not answer')));
    request.on('error', unreachable);
    request.end();
  });
}

function sendJson(response: ServerResponse, code: number, body: object): void {
  // Positions in the log of a database are big integers, which JSON has no word for.
  const text = JSON.stringify(body, (_key, value) => (typeof value === 'bigint' ? value.toString() : value), 2);
  send(response, code, 'application/json', `${text}\n`);
}

function send(response: ServerResponse, code: number, type: string, body: string): void {
  response.writeHead(code, {
    'Content-Type': type,
    'Cache-Control': 'no-store',
    'Content-Length': Buffer.byteLength(body),
  });
  response.end(body);
}
