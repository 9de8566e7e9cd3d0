/** The child process that makes load: `child.js ROLE`, with its orders and its news over the channel to its parent. */
import { queryFrame } from './frames.js';
import { type LoadOptions, runLoad } from './generator.js';
import { LoadSession, type LoginOptions, openMany } from './session.js';
import { sharedNow, Units, type UnitsOptions, watchPromotion } from './units.js';

/** What a parent sends. */
export type Order =
  | { readonly order: 'load'; readonly options: LoadOptions }
  | { readonly order: 'stop' }
  | { readonly order: 'idle'; readonly login: LoginOptions; readonly sessions: number }
  | { readonly order: 'units'; readonly options: UnitsOptions }
  | { readonly order: 'send'; readonly part: 0 | 1 }
  | { readonly order: 'promoted'; readonly address: { readonly host: string; readonly port: number } }
  | { readonly order: 'finish' }
  | { readonly order: 'watch'; readonly login: LoginOptions };

/** Answers to orders and notes in between; `news` names them. */
export interface News {
  readonly news: string;
  readonly [key: string]: unknown;
}

let units: Units | undefined;
let stop: () => void = () => {};
const stopped = new Promise<void>((resolve) => {
  stop = resolve;
});
const idle: LoadSession[] = [];
let cpuFrom = process.cpuUsage();

async function obey(order: Order): Promise<void> {
  switch (order.order) {
    case 'load': {
      const hooks = {
        onMeasure: () => tell({ news: 'measure' }),
        onMeasured: () => {
          tell({ news: 'measured' });
          return stopped;
        },
      };
      tell({ news: 'result', result: await runLoad(order.options, hooks) });
      return;
    }
    case 'stop':
      stop();
      return;
    case 'idle': {
      const { login, sessions } = order;
      // A session that has never asked for anything may not even have a server connection.
      const question = queryFrame('SELECT 1');
      const opened = await openMany(sessions, async () => {
        const session = await LoadSession.open(login);
        await session.run(question);
        session.onLost = (_, refusal) => fail(new Error(`an idle session was lost: ${refusal.message}`));
        return session;
      });
      idle.push(...opened);
      tell({ news: 'open' });
      return;
    }
    case 'units':
      units = new Units(order.options);
      await units.open();
      tell({ news: 'open' });
      return;
    case 'send':
      if (order.part === 0) cpuFrom = process.cpuUsage();
      units?.send(order.part);
      tell({ news: 'sent', at: sharedNow() });
      return;
    case 'promoted':
      units?.promoted(order.address);
      return;
    case 'finish': {
      const outcomes = await units?.finish();
      const { user, system } = process.cpuUsage(cpuFrom);
      tell({ news: 'outcomes', outcomes, cpuMs: (user + system) / 1000 });
      return;
    }
    case 'watch':
      tell({ news: 'writable', at: await watchPromotion(order.login, () => tell({ news: 'watching' })) });
  }
}

function tell(news: News): void {
  process.send?.(news);
}

function fail(error: Error): void {
  tell({ news: 'failed', message: error.message });
}

process.on('message', (order: Order) => {
  obey(order).catch(fail);
});
process.on('disconnect', () => {
  for (const session of idle) session.destroy();
  process.exit();
});
// The parent decides when this ends; Ctrl-C reaches both.
process.on('SIGINT', () => {});
