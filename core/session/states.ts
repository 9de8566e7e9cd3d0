/**
 * The states of a session towards its server, and what each boundary event means in each of them. Cells are data; a missing cell
 * does not compile, and `impossible` is an explicit cell: reaching it is a defect of the gateway and ends that session only.
 */

/**
 * - `connecting`: greeted, waits for its first server connection
 * - `live`: relays
 * - `doubting`: the server said something that may be a failover or someone's will; the topology is being asked
 * - `suspended`: no server connection; waits for one. Requests are held.
 * - `resolving`: a commit was interrupted; its outcome is being asked. Nothing is forwarded.
 * - `restoring`: the session's state is being brought to the new server
 * - `replaying`: the open unit is being repeated
 * - `failing`: the new server's transaction is being put into the failed state
 * - `detached`: no writable server came in time; the client was told; the next request tries again
 * - `passing`: bytes go through unseen; not protected
 * - `closed`
 */
export const STATES = [
  'connecting',
  'live',
  'doubting',
  'suspended',
  'resolving',
  'restoring',
  'replaying',
  'failing',
  'detached',
  'passing',
  'closed',
] as const;
export type State = (typeof STATES)[number];

/**
 * - `attached`: a logged-in server connection is there
 * - `doubt`: the server's words need the topology to be understood
 * - `intent`: the topology says: someone's will, pass it on
 * - `lost`: the server connection is gone or void
 * - `ask`: (after attached) a commit is in doubt
 * - `restore`: (after attached or the outcome) bring the state over
 * - `replay`: state is there, the open unit is to be repeated
 * - `fail`: the transaction cannot go on, put the new server's into the failed state
 * - `resume`: all is as the client believes: relay
 * - `unavailable`: the wait is over
 * - `request`: a request arrives
 * - `pass`: the codec cannot follow the stream any more
 * - `close`: client or gateway end the session
 */
export const EVENTS = [
  'attached',
  'doubt',
  'intent',
  'lost',
  'ask',
  'restore',
  'replay',
  'fail',
  'resume',
  'unavailable',
  'request',
  'pass',
  'close',
] as const;
export type Event = (typeof EVENTS)[number];

const impossible = null;
/** The event is stale or changes nothing here. */
const stay = undefined;

type Row = Record<Event, State | null | undefined>;

/** biome-ignore format: a table is read by columns */
export const TABLE: Record<State, Row> = {
  connecting: { attached: 'live',      doubt: impossible, intent: impossible, lost: 'suspended', ask: impossible,  restore: impossible,  replay: impossible,  fail: impossible, resume: impossible, unavailable: 'closed',   request: impossible,  pass: 'passing',  close: 'closed' },
  live:       { attached: impossible,  doubt: 'doubting', intent: stay,       lost: 'suspended', ask: impossible,  restore: impossible,  replay: impossible,  fail: impossible, resume: impossible, unavailable: stay,       request: stay,        pass: 'passing',  close: 'closed' },
  doubting:   { attached: impossible,  doubt: stay,       intent: 'live',     lost: 'suspended', ask: impossible,  restore: impossible,  replay: impossible,  fail: impossible, resume: impossible, unavailable: stay,       request: stay,        pass: impossible, close: 'closed' },
  suspended:  { attached: impossible,  doubt: stay,       intent: stay,       lost: stay,        ask: 'resolving', restore: 'restoring', replay: impossible,  fail: impossible, resume: impossible, unavailable: 'detached', request: stay,        pass: impossible, close: 'closed' },
  resolving:  { attached: impossible,  doubt: stay,       intent: stay,       lost: stay,        ask: impossible,  restore: 'restoring', replay: impossible,  fail: impossible, resume: impossible, unavailable: 'detached', request: stay,        pass: impossible, close: 'closed' },
  restoring:  { attached: impossible,  doubt: stay,       intent: stay,       lost: 'suspended', ask: impossible,  restore: impossible,  replay: 'replaying', fail: 'failing',  resume: 'live',     unavailable: 'detached', request: stay,        pass: impossible, close: 'closed' },
  replaying:  { attached: impossible,  doubt: 'suspended',intent: stay,       lost: 'suspended', ask: impossible,  restore: impossible,  replay: impossible,  fail: 'failing',  resume: 'live',     unavailable: 'detached', request: stay,        pass: impossible, close: 'closed' },
  failing:    { attached: impossible,  doubt: 'suspended',intent: stay,       lost: 'suspended', ask: impossible,  restore: impossible,  replay: impossible,  fail: stay,       resume: 'live',     unavailable: 'detached', request: stay,        pass: impossible, close: 'closed' },
  detached:   { attached: impossible,  doubt: stay,       intent: stay,       lost: stay,        ask: impossible,  restore: impossible,  replay: impossible,  fail: impossible, resume: impossible, unavailable: stay,       request: 'suspended', pass: impossible, close: 'closed' },
  passing:    { attached: impossible,  doubt: impossible, intent: stay,       lost: 'closed',    ask: impossible,  restore: impossible,  replay: impossible,  fail: impossible, resume: impossible, unavailable: stay,       request: stay,        pass: stay,       close: 'closed' },
  closed:     { attached: stay,        doubt: stay,       intent: stay,       lost: stay,        ask: stay,        restore: stay,        replay: stay,        fail: stay,       resume: stay,       unavailable: stay,       request: stay,        pass: stay,       close: stay },
};

/**
 * The state after an event.
 * @returns the next state; the same one when the event changes nothing
 * @throws Error when the cell is `impossible`: a defect of the gateway
 */
export function next(state: State, event: Event): State {
  const cell = TABLE[state][event];
  if (cell === null) throw new Error(`impossible: event ${event} in state ${state}`);
  return cell ?? state;
}
