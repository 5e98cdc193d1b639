// What happens when the page has come.

async function start() {
  showFacts();
  showCurves();
  showFigures();
  if (DATA.explorer) await startExplorer(DATA.explorer);
  else $('explorer').replaceChildren(
    $('explorer-title'), html('p', {class: 'note'}, 'This network has no routers.'));
  document.documentElement.dataset.ready = 'yes';
}

async function startExplorer({images, routers, stacks}) {
  const shown = new Images(images);
  await shown.load();
  new Explorer(shown, routers.map((router) => new Router(router)), stacks).start();
}

start();
